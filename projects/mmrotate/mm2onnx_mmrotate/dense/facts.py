"""Facts of one-stage heads of rotated boxes."""

import dataclasses
from typing import Annotated, Literal

from mm2onnx_mmrotate.angles import Version
from mm2onnx_mmrotate.deltas import Angles, Delta
from mm2onnx_mmrotate.dense.head import RotatedHead
from mmdeploy_ext.contract.facts import Bounds, Count, Facts, Fraction, Limit, Mismatch, Stride, optional

Priors = tuple[Annotated[tuple[float, ...], Bounds(2, 4)], ...]
"""Priors of the first cell of a level, pixels: x1, y1, x2, y2 of an anchor, or x, y of a point."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance(Facts):
    """Settings of `DistanceAnglePointCoder`."""

    version: Version
    angles: Angles | None = optional()
    type: Literal['distance'] = 'distance'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points(Facts):
    """Settings of the smallest rectangles around points."""

    version: Version
    strides: tuple[Stride, ...]
    type: Literal['points'] = 'points'


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadFacts(Facts):
    """How a head decodes.

    Attributes:
        base_priors: of each level; of a head whose priors are an output of the network it is the point 0, 0.
    """

    strides: tuple[Stride, ...]
    base_priors: tuple[Priors, ...]
    coder: Delta | Distance | Points
    num_classes: Count
    angle_version: Version
    head: RotatedHead

    def check(self) -> None:
        levels = len(self.strides)
        if len(self.base_priors) != levels:
            raise Mismatch(f'base_priors has {len(self.base_priors)} entries, strides has {levels}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedDenseFacts(HeadFacts):
    """How the last head decodes, and what `test_cfg` decides about results."""

    score_thr: float
    nms_pre: Limit
    iou_threshold: Fraction
    max_per_img: Limit
