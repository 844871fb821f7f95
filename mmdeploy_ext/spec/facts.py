"""Facts of a model kept in its files: thresholds, coders, strides, sizes. No PyTorch."""

import dataclasses
from typing import Annotated, Literal, get_args

from mmdeploy_ext.base.typed_json import Bounds, JsonDataclass, Mismatch, optional, plain, read

__all__ = ['Bounds', 'Facts', 'Mismatch', 'optional', 'plain', 'read']

Facts = JsonDataclass
Count = Annotated[int, Bounds(1, 100_000)]
Limit = Annotated[int, Bounds(-1, 10**9)]
"""Largest number; -1, and usually 0: no limit."""
Stride = Annotated[int, Bounds(1, 4096)]
"""Pixels per cell of a feature map."""
Pixels = Annotated[int, Bounds(1, 16_384)]
Positive = Annotated[float, Bounds(above=0)]
NotNegative = Annotated[float, Bounds(0)]
Fraction = Annotated[float, Bounds(0, 1)]
MaskThreshold = Annotated[float, Bounds(maximum=1)]
"""Inclusive; below 0, masks are 255 times their probabilities, uint8."""
Range = tuple[float, float, float, float, float, float]
"""Smallest x, y, z, then largest."""


# `test_cfg` settings that turn boxes into results or proposals.


@dataclasses.dataclass(frozen=True, kw_only=True)
class NmsConfig(Facts):
    """Settings of NMS, or of mmcv's `soft_nms` if `method` is set.

    Attributes:
        score_thr: class scores (before the score factor) must exceed it; heads may differ.
        nms_pre: maximum of candidates per level, see `Head.choose`; -1: none.
        iou_threshold: above this IoU the worse box of a class is removed or loses score.
        max_per_img: maximum of detections per image; -1: none.
        class_agnostic: suppress across classes.
        method: of `soft_nms`, see `upstream/operators/nms.py`.
        sigma: divisor of the squared IoU in 'gaussian'.
        min_score: boxes below it are removed by `soft_nms`.
    """

    score_thr: float
    nms_pre: Limit
    iou_threshold: Fraction
    max_per_img: Limit
    class_agnostic: bool = False
    method: Literal['naive', 'linear', 'gaussian'] | None = optional()
    sigma: float | None = optional()
    min_score: float | None = optional()


Kernel = Literal['gaussian', 'linear']
KERNELS = get_args(Kernel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskConfig(Facts):
    """`test_cfg` settings for instance masks by matrix NMS.

    Attributes:
        score_thr: class scores must exceed it; in [0, 1).
        mask_thr: mask probabilities must exceed it; in [0, 1).
        filter_thr: scores after matrix NMS must reach it; at 0 or below only NaN fails, see
            `matrix_decay`.
        nms_pre: maximum of candidates; -1: none.
        max_per_img: maximum of results; -1: none.
        sigma: factor in exp(-sigma * iou^2).
    """

    score_thr: float
    mask_thr: Fraction
    filter_thr: float
    nms_pre: Limit
    max_per_img: Limit
    kernel: Kernel
    sigma: Positive
