"""Settings of a `test_cfg` that turn boxes into results or proposals."""

import dataclasses
from typing import Literal, get_args

from mmdeploy_ext.contract.facts import Facts, Fraction, Limit, Positive, optional


@dataclasses.dataclass(frozen=True, kw_only=True)
class NmsConfig(Facts):
    """Settings of NMS, or of mmcv's `soft_nms` if there is a `method`.

    Attributes:
        score_thr: class scores (before the score factor) must exceed it, unless the head compares otherwise.
        nms_pre: most candidates per level, see `Head.choose`; -1 is no limit.
        iou_threshold: IoU above which the worse box of a class goes, or loses score.
        max_per_img: most detections per image; -1 is no limit.
        class_agnostic: suppress across classes.
        method: of `soft_nms`, see `exporting/ops/soft_nms.py`.
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
    """Settings of a `test_cfg` for instance masks by matrix NMS.

    Attributes:
        score_thr: class scores must exceed it; in [0, 1).
        mask_thr: mask probabilities must exceed it; in [0, 1).
        filter_thr: scores after matrix NMS must reach it; at 0 or below only NaN is filtered, see
            `matrix_decay`.
        nms_pre: most candidates; -1 is no limit.
        max_per_img: most results; -1 is no limit.
        sigma: factor in exp(-sigma * iou^2).
    """

    score_thr: float
    mask_thr: Fraction
    filter_thr: float
    nms_pre: Limit
    max_per_img: Limit
    kernel: Kernel
    sigma: Positive
