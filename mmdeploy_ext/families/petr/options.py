"""PETR and PETRv2: their options, and the schema of the post-processing in the metadata of their files."""

import dataclasses

from mmdeploy_ext.contract import options
from mmdeploy_ext.contract.schema import full_record, mapping, number, one_of
from mmdeploy_ext.families.parts.options import BOX_FACTS, CONVENTIONS

PORTABLE, DL4AGX = 'portable', 'dl4agx'
"""Choices of `--contract`."""
FRAME, RIG, MODEL = 'frame', 'rig', 'model'
"""How long a value may be used again: for one frame, until calibration or image size change, for ever."""
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
POSTPROCESS = full_record(
    **BOX_FACTS,
    box_convention=one_of(*CONVENTIONS),
    start_gap_s=number(above=0),
    valid_for=mapping(one_of(FRAME, RIG, MODEL)),
)
"""Schema of `PetrFamily.postprocess_facts`."""
