"""Facts of two-stage detectors of rotated boxes."""

import dataclasses
from typing import Literal

from mm2onnx_mmrotate.angles import Version
from mm2onnx_mmrotate.deltas import Delta
from mmdeploy_ext.contract.facts import Count, Facts, Fraction, Limit, Positive, optional
from mmdeploy_ext.contract.nms import NmsConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlidingVertex(Facts):
    """Settings of a `GVBBoxHead`.

    Attributes:
        means, stds, wh_ratio_clip, ctr_clamp: of the upright box, see `box_coders.Delta`.
        clip: whether the upright box is clipped.
        ratio_thr: a box stays upright if its covered share exceeds it.
    """

    means: tuple[float, float, float, float]
    stds: tuple[Positive, Positive, Positive, Positive]
    wh_ratio_clip: Positive
    ctr_clamp: float | None = optional()
    clip: bool
    ratio_thr: float
    version: Version
    type: Literal['gliding_vertex'] = 'gliding_vertex'


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedTwoStageFacts(Facts):
    """The settings of `test_cfg.rcnn`, the coder of the last head, and the suppression of proposals."""

    score_thr: float
    iou_threshold: Fraction
    max_per_img: Limit
    coder: Delta | GlidingVertex
    num_classes: Count
    angle_version: Version
    proposals: NmsConfig
