"""The check of the `postprocess` entry of files of two-stage detectors of rotated boxes."""

from typing import Any

from mm2onnx_mmrotate.angles import VERSION
from mm2onnx_mmrotate.deltas import SETTINGS
from mmdeploy_ext.contract.schema import (
    COUNT,
    FLAG,
    FRACTION,
    LIMIT,
    POSITIVE,
    Check,
    anything,
    exactly,
    full_record,
    number,
    one_of,
    open_record,
    record,
)

CODERS: dict[str, dict[str, Check]] = dict(
    upright_delta=SETTINGS,
    rotated_delta=SETTINGS,
    gliding_vertex=dict(
        means=exactly(4, number()),
        stds=exactly(4, POSITIVE),
        wh_ratio_clip=POSITIVE,
        ctr_clamp=number(0),
        clip=FLAG,
        ratio_thr=number(),
        version=VERSION,
    ),
)
"""Coder of `coders.CODERS` -> checks of the settings that it reads; the last may lack `ctr_clamp`."""


def check_coder(value: Any, key: str) -> None:
    """Refuse, with a Mismatch, an unknown coder, settings that it lacks or does not have, and wrong values.

    It is a check of `schema`. The value is a dict of `type`, a key of `CODERS`, and the settings that this
    coder reads; `key` is its place in the metadata, for the message.
    """
    record(dict(type=one_of(*CODERS)), ('type',), closed=False)(value, key)
    settings = CODERS[value['type']]
    required = tuple(settings)
    if value['type'] == 'gliding_vertex':
        required = tuple(name for name in settings if name != 'ctr_clamp')
    record(dict(settings, type=anything), required)(value, key)


POSTPROCESS = full_record(
    score_thr=number(),
    iou_threshold=FRACTION,
    max_per_img=LIMIT,
    coder=check_coder,
    num_classes=COUNT,
    angle_version=VERSION,
    proposals=open_record(iou_threshold=FRACTION, nms_pre=LIMIT, max_per_img=LIMIT),
)
