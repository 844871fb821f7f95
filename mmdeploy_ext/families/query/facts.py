"""Facts of detectors of queries."""

import dataclasses

from mmdeploy_ext.spec.facts import Count, Facts, Fraction, MaskThreshold, optional


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryFacts(Facts):
    """Facts of detectors of queries; the last four are of panoptic maps.

    Attributes:
        num_classes: with panoptic maps things and stuff.
        max_per_img: most results; None for panoptic maps.
        mask_thr: inclusive mask threshold of boxes with masks, or None.
        num_things: the first classes are things.
        object_mask_thr: exclusive score threshold of a query.
        iou_thr: least share of a mask's pixels that belong to its query.
        filter_low_score: pixels outside of their query's mask get no segment.
    """

    num_classes: Count
    max_per_img: Count | None = optional()
    mask_thr: MaskThreshold | None = optional()
    num_things: Count | None = optional()
    object_mask_thr: Fraction | None = optional()
    iou_thr: Fraction | None = optional()
    filter_low_score: bool = optional(False)
