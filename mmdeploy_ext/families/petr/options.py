"""PETR and PETRv2: options of exports. No torch."""

import dataclasses

from mmdeploy_ext.contract import options

PORTABLE, DL4AGX = 'portable', 'dl4agx'
"""Choices of `--contract`."""
OPTIONS = (
    dataclasses.replace(
        options.CONTRACT,
        default=PORTABLE,
        help='portable: three graphs, the position embedding is one of its own and the head refuses that of '
        "another calibration (default); dl4agx: the two graphs of NVIDIA's DL4AGX, whose caller computes the "
        'position embedding, and a third graph that does',
        choices=(PORTABLE, DL4AGX),
        fixes={DL4AGX: dict(precision='fp32')},
    ),
)
"""Options of the family."""
