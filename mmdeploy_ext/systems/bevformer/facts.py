"""Facts of BEVFormer models, kept in their files."""

import dataclasses
from typing import Literal

from mmdeploy_ext.contract.facts import Count, Positive
from mmdeploy_ext.families.common.runtime.query_boxes import QueryBoxFacts

RECORDED = 'wwww', 'wxyz'


@dataclasses.dataclass(frozen=True, kw_only=True)
class BevFormerFacts(QueryBoxFacts):
    """Facts of a BEVFormer.

    Attributes:
        bev_h, bev_w: rows and columns of the bird's-eye view.
        extent: width and height of the view, metres.
        rotate_center: column and row about which the last view turns.
        rotate_prev_bev, use_shift: whether the last view is turned and shifted by the motion of the car.
        can_bus_orientation: kind of record of the training data.
    """

    bev_h: Count
    bev_w: Count
    extent: tuple[Positive, Positive]
    rotate_center: tuple[float, float]
    rotate_prev_bev: bool
    use_shift: bool
    can_bus_orientation: Literal['wwww', 'wxyz']
