"""Monocular detectors: the schemas of the post-processing in their metadata."""

from mmdeploy_ext.contract.schema import (
    COUNT,
    FLAG,
    FRACTION,
    LIMIT,
    POSITIVE,
    STRIDES,
    exactly,
    full_record,
    items,
    maybe,
    number,
)

CODE_SIZE = number(7, 9, integer=True)
"""Number of values of a box: 7, or 9 with a velocity."""
DEPTH = full_record(bins=items(number(), 2), logarithms=FLAG, direct=FRACTION, uncertain=FLAG)
"""How depths of bins are mixed with direct ones, see `decoding.mixed_depth`."""
POSTPROCESS = full_record(
    num_classes=COUNT,
    code_size=CODE_SIZE,
    strides=STRIDES,
    dir_offset=number(),
    depth=maybe(DEPTH),
    attributes=number(0, integer=True),
    sides=FLAG,
    nms_pre=LIMIT,
    score_thr=number(),
    nms_thr=POSITIVE,
    max_per_img=COUNT,
)
"""The entry `postprocess` of files of FCOS3D and PGD, see `graphs.postprocess_facts`."""
SMOKE_POSTPROCESS = full_record(
    num_classes=COUNT,
    code_size=CODE_SIZE,
    base_depth=exactly(2, number()),
    base_dims=items(exactly(3, POSITIVE), 1),
    window=number(1, 99, integer=True),
    max_per_img=COUNT,
    score_thr=FRACTION,
)
"""The entry `postprocess` of files of SMOKE, see `smoke_graphs.postprocess_facts`."""
