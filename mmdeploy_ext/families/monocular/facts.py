"""Facts of monocular detectors: numbers by which outputs become results."""

import dataclasses
from typing import Annotated

from mmdeploy_ext.spec.facts import Bounds, Count, Facts, Fraction, Positive, Stride

CodeSize = Annotated[int, Bounds(7, 9)]
"""Number of values of a box: 7, or 9 with a velocity."""


@dataclasses.dataclass(frozen=True)
class Depth(Facts):
    """How a PGD head mixes depths (`decoding.mixed_depth`).

    Attributes:
        bins: depths of the bins, metres, or their logarithms.
        direct: share of the direct depth.
        uncertain: whether the head has an output of weights.
    """

    bins: tuple[float, ...]
    logarithms: bool
    direct: Fraction
    uncertain: bool


@dataclasses.dataclass(frozen=True)
class PointsFacts(Facts):
    """Facts of FCOS3D and PGD.

    Attributes:
        strides: pixels.
        dir_offset: radians.
        depth: None for direct depths alone.
        attributes: number of attributes.
        sides: whether the model has 2D boxes.
        nms_pre: 0 or less limits nothing.
    """

    num_classes: Count
    code_size: CodeSize
    strides: tuple[Stride, ...]
    dir_offset: float
    depth: Depth | None
    attributes: int
    sides: bool
    nms_pre: int
    score_thr: float
    nms_thr: Positive
    max_per_img: Count


@dataclasses.dataclass(frozen=True)
class SmokeFacts(Facts):
    """Facts of SMOKE.

    Attributes:
        base_depth: mean and deviation, metres.
        base_dims: length, height and width of each class, metres.
        window: side of the peak's square, cells.
        max_per_img: number of peaks.
    """

    num_classes: Count
    code_size: CodeSize
    base_depth: tuple[float, float]
    base_dims: tuple[tuple[Positive, Positive, Positive], ...]
    window: Count
    max_per_img: Count
    score_thr: Fraction
