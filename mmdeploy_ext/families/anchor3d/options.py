"""Detectors with anchors in 3D: their options, and what their files tell `families/anchor3d/runtime`."""

from mmdeploy_ext.contract.schema import items, number, one_of, open_record
from mmdeploy_ext.contract.values import COUNT, FLAG, POSITIVE

POSTPROCESS = open_record(
    points=one_of('pillars'),
    num_classes=COUNT,
    code_size=number(7, 9, whole=True),
    levels=COUNT,
    aligned=FLAG,
    align_corner=FLAG,
    ranges=items(number(), 6),
    sizes=items(POSITIVE, 3),
    rotations=items(number(), 1),
    scales=items(POSITIVE, 1),
    size_per_range=FLAG,
    dir_offset=number(),
    dir_limit_offset=number(),
    nms_pre=number(whole=True),
    score_thr=number(),
    nms_thr=number(0),
    rotated=FLAG,
    max_num=COUNT,
    cells=items(COUNT, 2),
)
