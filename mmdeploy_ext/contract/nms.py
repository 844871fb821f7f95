"""Settings of a `test_cfg` by which boxes become results, or proposals. Needs only the standard library."""

import dataclasses
from typing import Literal, get_args

from mmdeploy_ext.contract.facts import Facts, Fraction, Limit, Positive, optional


@dataclasses.dataclass(frozen=True, kw_only=True)
class NmsConfig(Facts):
    """Settings of a suppression; with a `method` it is mmcv's `soft_nms`, by which boxes lose score.

    They do if they overlap a better one by an IoU of `iou_threshold` or more; in the method 'gaussian' at
    every overlap.

    Attributes:
        score_thr: threshold that class scores (before the score factor) must exceed, unless the head's
            variant of `get_bboxes` compares otherwise.
        nms_pre: largest number of candidates of a level: (prior, class) pairs by class score, or priors with
            all their classes, as `Head.choose` states; -1 is no limit.
        iou_threshold: IoU above which the NMS within classes drops the worse of two boxes.
        max_per_img: largest number of detections of an image; -1 is no limit.
        class_agnostic: whether boxes suppress those of other classes.
        method: method of `soft_nms`, a name of `exporting/ops/soft_nms.py`.
        sigma: divisor of the squared IoU in the method 'gaussian'.
        min_score: boxes whose score falls below it are removed.
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
"""Kernels of the matrix NMS."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskConfig(Facts):
    """The settings of a `test_cfg` that decide about instance masks, by matrix NMS.

    Attributes:
        score_thr: threshold that class scores must exceed, from 0 to below 1.
        mask_thr: probability that a pixel of a mask must exceed, from 0 to below 1.
        filter_thr: scores after the matrix NMS must reach this; at 0 or below only those are filtered that
            mmdet makes NaN, see `matrix_decay`.
        nms_pre: candidates that enter the matrix NMS; -1 lets all in.
        max_per_img: results per image; -1 keeps all.
        sigma: factor in the gaussian kernel exp(-sigma * iou^2).
    """

    score_thr: float
    mask_thr: Fraction
    filter_thr: float
    nms_pre: Limit
    max_per_img: Limit
    kernel: Kernel
    sigma: Positive
