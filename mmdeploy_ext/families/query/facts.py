"""Facts of detectors of queries."""

import dataclasses

from mmdeploy_ext.contract.facts import Count, Facts, Fraction, optional


@dataclasses.dataclass(frozen=True)
class QueryFacts(Facts):
    """Facts of detectors that give boxes; `mask_thr` of masks that are pasted into the boxes."""

    max_per_img: Count
    num_classes: Count
    mask_thr: Fraction | None = optional()


@dataclasses.dataclass(frozen=True)
class QueryPanopticFacts(Facts):
    """Facts of detectors of panoptic maps.

    Attributes:
        num_classes: things and stuff.
        num_things: the first classes are things.
        object_mask_thr: score that a query has to exceed.
        iou_thr: least ratio of the pixels that belong to a query to those of its mask.
        filter_low_score: whether pixels outside of the mask of their query get no segment.
    """

    num_classes: Count
    num_things: Count
    object_mask_thr: Fraction
    iou_thr: Fraction
    filter_low_score: bool
