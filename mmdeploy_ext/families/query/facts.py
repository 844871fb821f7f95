"""Facts of detectors of queries."""

import dataclasses

from mmdeploy_ext.contract.facts import Count, Facts, Fraction, optional


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryFacts(Facts):
    """Facts of detectors of queries; the last four are of panoptic maps.

    Attributes:
        num_classes: of panoptic maps things and stuff.
        max_per_img: most results of an image; None of panoptic maps.
        mask_thr: value 0..1 from which on a pixel belongs to a mask that is pasted into a box; None without.
        num_things: the first classes are things.
        object_mask_thr: score that a query has to exceed.
        iou_thr: least ratio of the pixels that belong to a query to the pixels of its mask.
        filter_low_score: whether pixels outside of the mask of their query get no segment.
    """

    num_classes: Count
    max_per_img: Count | None = optional()
    mask_thr: Fraction | None = optional()
    num_things: Count | None = optional()
    object_mask_thr: Fraction | None = optional()
    iou_thr: Fraction | None = optional()
    filter_low_score: bool = optional(False)
