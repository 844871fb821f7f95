"""Sparse4D: options of exports. No torch."""

import dataclasses

from mmdeploy_ext.contract import options
from mmdeploy_ext.families.parts.options import GRID_SAMPLE

DEPLOY = 'deploy'
"""Choice of `--contract`: three files with the names that a C++ node loads."""
OPTIONS = (
    dataclasses.replace(
        options.CONTRACT,
        default='portable',
        help='portable: one graph of plain operators for all frames (default); deploy: the backbone, the '
        "head of a first frame and that of the others, with the names of SparseEnd2End's files",
        choices=('portable', DEPLOY),
    ),
    dataclasses.replace(
        GRID_SAMPLE,
        default='gather',
        help='gather leaves out cameras that do not see an instance (default); operator takes GridSample, in '
        'graphs of fixed shapes',
        only_with=('contract', 'portable'),
        group=options.CONTRACT.group,
    ),
)
"""Options of the family."""
