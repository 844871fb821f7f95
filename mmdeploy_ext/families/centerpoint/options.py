"""CenterPoint: its options, and the schema of the post-processing in the metadata of its files."""

from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.contract.schema import (
    COUNT,
    FLAG,
    LIMIT,
    POSITIVE,
    RANGE,
    Mismatch,
    equal_lengths,
    exactly,
    items,
    maybe,
    number,
    one_of,
    open_record,
)
from mmdeploy_ext.families.parts.options import LIDAR_OPTIONS

OPTIONS = LIDAR_OPTIONS
"""Options of the family."""


def check_lengths(facts: Mapping[str, Any], key: str) -> None:
    """Refuse (Mismatch) lists whose lengths do not fit: `min_radius` and `post_center_limit_range`.

    Circle NMS has a radius per task; the range has 0 or 6 numbers. Circle NMS without a limit of results,
    `post_max_size`, is refused, too: mmdet3d's compares with it. `facts` is the entry of the metadata, `key`
    its place, for messages.
    """
    if facts.get('nms_type') == 'circle':
        equal_lengths('num_classes', 'min_radius')(facts, key)
        if facts.get('post_max_size', 0) is None:
            raise Mismatch('post_max_size is None, expected the limit that circle NMS needs')
    if (count := len(facts.get('post_center_limit_range', ()))) not in (0, 6):
        raise Mismatch(f'post_center_limit_range has {count} numbers, expected 6 or none')


POSTPROCESS = open_record(
    points=one_of('pillars'),
    num_classes=items(COUNT, 1, 64),
    voxel_size=exactly(2, POSITIVE),
    pc_origin=exactly(2, number()),
    out_size_factor=number(1, 1024, integer=True),
    max_num=COUNT,
    score_threshold=maybe(number()),
    post_center_range=RANGE,
    norm_bbox=FLAG,
    with_velocity=FLAG,
    nms_type=one_of('rotate', 'circle'),
    nms_thr=number(0),
    nms_score_threshold=number(),
    pre_max_size=maybe(LIMIT),
    post_max_size=maybe(LIMIT),
    min_radius=items(number(0), 0, 64),
    post_center_limit_range=items(number(), 0, 6),
    also=check_lengths,
)
"""Schema of `graphs.postprocess_facts`; its keys are explained by `BoxRule`, but `points`, which files with
pillars have."""
