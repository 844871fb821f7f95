"""Facts of YOLACT."""

import dataclasses

from mmdeploy_ext.spec.facts import Count, Facts, Fraction, Limit


@dataclasses.dataclass(frozen=True)
class YolactFacts(Facts):
    """Settings of `test_cfg`; `mask_thr` is exclusive."""

    score_thr: float
    iou_thr: Fraction
    mask_thr: Fraction
    nms_pre: Limit
    top_k: Count
    max_per_img: Count
    num_classes: Count
