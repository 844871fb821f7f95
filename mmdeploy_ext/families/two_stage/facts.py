"""Facts of two-stage detectors."""

import dataclasses
from typing import Annotated

from mmdeploy_ext.spec.facts import Bounds, Count, Fraction, MaskThreshold, NmsConfig, optional


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStageFacts(NmsConfig):
    """Facts of a two-stage detector, first of the suppression of its results; the last three are of maps.

    Attributes:
        proposals: suppression of the proposals; None if they are an input.
        mask_thr: inclusive mask threshold, or None.
        num_things: the first classes are things.
        mask_overlap: largest share of an instance under better kept instances.
        stuff_area_limit: least pixels of a class of stuff.
    """

    num_classes: Count
    proposals: NmsConfig | None = optional()
    mask_thr: MaskThreshold | None = optional()
    num_things: Count | None = optional()
    mask_overlap: Fraction | None = optional()
    stuff_area_limit: Annotated[int, Bounds(0, 10**9)] | None = optional()
