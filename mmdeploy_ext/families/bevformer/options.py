"""BEVFormer: its options, and the schema of the post-processing in the metadata of its files."""

import dataclasses

from mmdeploy_ext.contract import options
from mmdeploy_ext.contract.schema import COUNT, FLAG, RANGE, exactly, full_record, maybe, number
from mmdeploy_ext.families.parts.options import GRID_SAMPLE

OPTIONS = (
    dataclasses.replace(
        options.CONTRACT,
        default='portable',
        help="portable: one graph of plain operators; motion and the last bird's-eye view are inputs",
        choices=('portable',),
    ),
    GRID_SAMPLE,
)
"""Options of the family."""
POSTPROCESS = full_record(
    max_num=COUNT,
    post_center_range=RANGE,
    score_threshold=maybe(number()),
    num_classes=COUNT,
    bev_h=COUNT,
    bev_w=COUNT,
    extent=exactly(2, number(above=0)),
    rotate_center=exactly(2, number()),
    rotate_prev_bev=FLAG,
    use_shift=FLAG,
)
"""Schema of `BevFormerFamily.postprocess_facts`."""
