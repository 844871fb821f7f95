"""Sparse4D: options of exports. No torch."""

import dataclasses

from mmdeploy_ext.contract import options
from mmdeploy_ext.families.parts.options import GRID_SAMPLE

OPTIONS = (
    options.own_contract('portable', 'one graph of plain operators for all frames'),
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
