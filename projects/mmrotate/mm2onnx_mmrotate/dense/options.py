"""Options of one-stage heads of rotated boxes, and the check of the `postprocess` entry of their files."""

from typing import Any

from mm2onnx_mmrotate.angles import VERSION
from mm2onnx_mmrotate.deltas import SETTINGS
from mmdeploy_ext.contract.options import MAX_CANDIDATES
from mmdeploy_ext.contract.schema import (
    COUNT,
    FLAG,
    FRACTION,
    LIMIT,
    POSITIVE,
    STRIDES,
    Check,
    anything,
    equal_lengths,
    full_record,
    items,
    number,
    one_of,
    record,
    text,
)

OPTIONS = (MAX_CANDIDATES,)
ANGLES = full_record(width=POSITIVE, range=POSITIVE, offset=number(0), sigmoid=FLAG)
"""Classes of angles, degrees: the width of each, the range of all, and how far below zero the first begins.

`sigmoid` is whether the best class is that of the highest score, not logit.
"""
CODERS: dict[str, dict[str, Check]] = dict(
    delta=SETTINGS,
    distance=dict(version=VERSION),
    points=dict(version=VERSION, strides=STRIDES),
)
"""Coder of `coders.CODERS` -> checks of the settings that it reads."""
OPTIONAL: dict[str, dict[str, Check]] = dict(
    delta=dict(angles=ANGLES, replaced=FLAG), distance=dict(angles=ANGLES), points={}
)
"""Coder -> checks of settings that may be missing."""
PRIORS = items(items(items(number(), 2, 4), 1, 1024), 1, 64)
"""Of each level the priors of its first cell, pixels: x1, y1, x2, y2 of an anchor, or x, y of a point.

Of a head whose priors are an output of the network it is the point 0, 0.
"""
OUTPUTS = items(items(anything, 2, 2), 1, 8)
HEAD = full_record(
    outputs=OUTPUTS, activation=one_of('sigmoid', 'softmax'), factor=text(), refined=FLAG, clips=FLAG
)


def check_coder(value: Any, key: str) -> None:
    """Refuse (Mismatch) settings of an unknown coder, and those that lack an entry or have another one.

    Entries of `OPTIONAL` may be missing, but `angles` of 'delta' need `replaced`: it says whether the best of
    these classes is the angle of a box or its delta. It is a check of `schema`: `value` is the entry `coder`
    of the metadata, `key` its place, for messages.
    """
    record(dict(type=one_of(*CODERS)), ('type',), closed=False)(value, key)
    settings = CODERS[value['type']]
    required = tuple(settings)
    if value['type'] == 'delta' and 'angles' in value:
        required = (*required, 'replaced')
    record(dict(settings, **OPTIONAL[value['type']], type=anything), required)(value, key)


POSTPROCESS = full_record(
    score_thr=number(),
    nms_pre=LIMIT,
    iou_threshold=FRACTION,
    max_per_img=LIMIT,
    strides=STRIDES,
    base_priors=PRIORS,
    coder=check_coder,
    head=HEAD,
    num_classes=COUNT,
    angle_version=VERSION,
    also=equal_lengths('strides', 'base_priors'),
)
