"""BEVFormer: its options, and the schema of the post-processing in the metadata of its files."""

import dataclasses

from mmdeploy_ext.contract import options
from mmdeploy_ext.contract.schema import COUNT, FLAG, exactly, full_record, number, one_of
from mmdeploy_ext.families.parts.options import AUTOWARE, BOX_FACTS, CONVENTIONS, GRID_SAMPLE

PORTABLE, TRT_PLUGIN = 'portable', 'trt-plugin'
"""Choices of `--contract`, beside `AUTOWARE`."""
RECORDED = 'wwww', 'wxyz'
"""Kinds of entries 3 to 6 of the records that models were trained with, see `bev_motion.ORIENTATIONS`."""
OPTIONS = (
    dataclasses.replace(
        options.CONTRACT,
        default=PORTABLE,
        help="portable: one graph of plain operators; motion and the last bird's-eye view are inputs; "
        'trt-plugin: the graph that TensorRT deployments of BEVFormer load, with their plug-ins; autoware: '
        "the file that Autoware's tensorrt_bevformer loads, of plain operators",
        choices=(PORTABLE, TRT_PLUGIN, AUTOWARE),
        fixes={
            TRT_PLUGIN: dict(precision='fp32', grid_sample='operator'),
            AUTOWARE: dict(precision='fp32'),
        },
    ),
    GRID_SAMPLE,
)
"""Options of the family."""
POSTPROCESS = full_record(
    **BOX_FACTS,
    bev_h=COUNT,
    bev_w=COUNT,
    extent=exactly(2, number(above=0)),
    rotate_center=exactly(2, number()),
    rotate_prev_bev=FLAG,
    use_shift=FLAG,
    box_convention=one_of(*CONVENTIONS),
    can_bus_orientation=one_of(*RECORDED),
)
"""Schema of `BevFormerFamily.postprocess_facts`."""
