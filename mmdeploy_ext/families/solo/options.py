"""SOLO, SOLOv2 and Decoupled SOLO: their options, and what their files tell `families/solo/runtime`."""

from mmdeploy_ext.contract.options import MAX_CANDIDATES, OF_SOME, Option
from mmdeploy_ext.contract.schema import (
    COUNT,
    FRACTION,
    LIMIT,
    POSITIVE,
    STRIDES,
    equal_lengths,
    items,
    number,
    one_of,
    open_record,
    text,
)

LAYOUT = Option(
    'layout',
    'batched',
    'raw form: cells of all levels with a batch axis (default), or exactly the outputs of the fork '
    'zhangjinsong3/SOLOv2.tensorRT',
    ('batched', 'fork'),
    only_with=('form', 'raw'),
    group=OF_SOME,
)
OPTIONS = (LAYOUT, MAX_CANDIDATES)
"""Options of the family."""
POSTPROCESS = open_record(
    score_thr=number(),
    mask_thr=FRACTION,
    filter_thr=number(),
    nms_pre=LIMIT,
    max_per_img=LIMIT,
    kernel=one_of('gaussian', 'linear'),
    sigma=POSITIVE,
    head=text(r'\w*SOLO\w*', 'a SOLO head'),
    num_classes=COUNT,
    num_grids=items(number(1, 1024, integer=True), 1, 64),
    strides=STRIDES,
    mask_stride=number(1, 64, integer=True),
    cells=text(),
    also=equal_lengths('num_grids', 'strides'),
)
"""The entry `postprocess` of the metadata."""
