"""Facts of detectors that predict the layers of their masks."""

import dataclasses

from mmdeploy_ext.spec.facts import Count, Facts, Fraction, Limit


@dataclasses.dataclass(frozen=True)
class InstanceFacts(Facts):
    """Settings of `test_cfg`; thresholds are exclusive, boxes have to be wider than `min_size`."""

    score_thr: float
    iou_thr: Fraction
    mask_thr: Fraction
    min_size: float
    nms_pre: Limit
    max_per_img: Count
    num_classes: Count
