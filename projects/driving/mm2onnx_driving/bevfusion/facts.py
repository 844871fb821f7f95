"""Facts of BEVFusion."""

import dataclasses
from typing import Literal

from mmdeploy_ext.spec.facts import Count, Facts, Fraction, NotNegative, Positive, Range, optional

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Circle(Facts):
    """Suppression of a group of classes by `radius`, a squared distance in m2."""

    classes: tuple[int, ...]
    radius: NotNegative
    most: Count


@dataclasses.dataclass(frozen=True)
class Rotated(Facts):
    """Suppression of a group of classes by `overlap`, a bird's-eye view IoU.

    Attributes:
        classes: ascending.
        most: largest number of results of the group.
        first: number of best boxes that enter; None: all.
        scales: factors of the sizes of each class.
    """

    classes: tuple[int, ...]
    most: Count
    overlap: Fraction
    first: Count | None
    scales: tuple[Positive, ...]


@dataclasses.dataclass(frozen=True)
class Coder(Facts):
    """Settings of the box coder.

    Attributes:
        pc_range: metres.
        voxel_size: metres.
        out_size_factor: voxels per cell.
        post_center_range: closed range of the box's bottom centre, metres; None: no limit.
        score_threshold: exclusive; None and 0: no limit.
    """

    pc_range: tuple[float, ...]
    voxel_size: tuple[Positive, ...]
    out_size_factor: Count
    post_center_range: Range | None
    score_threshold: float | None


@dataclasses.dataclass(frozen=True)
class ViewFacts(Facts):
    image_size: tuple[Count, Count]
    columns: tuple[float, ...]
    rows: tuple[float, ...]
    depths: tuple[float, ...]
    centre: Triple
    step: Triple
    count: tuple[Count, Count, Count]


@dataclasses.dataclass(frozen=True)
class BEVFusionFacts(Facts):
    """Facts of a model of cameras, LiDAR or both.

    Attributes:
        queries: number of boxes before suppression.
        uses_points: whether the cameras take depth maps of the LiDAR.
        nms: suppression per class or per group; None: off.
        view: None for LiDAR alone.
    """

    sensors: tuple[Literal['camera', 'lidar'], ...]
    queries: Count
    uses_points: bool
    nms: Circle | tuple[Circle | Rotated, ...] | None
    coder: Coder
    view: ViewFacts | None = optional()
