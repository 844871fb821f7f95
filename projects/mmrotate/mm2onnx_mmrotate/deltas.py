"""Boxes of deltas: the coders `DeltaXYWHAOBBoxCoder` and `DeltaXYWHAHBBoxCoder`, of both families.

Here are their settings, and the boxes for numpy and PyTorch (`xp`).

Glossary: B images, A priors of a level. Source: mmrotate 0.3.4 `core/bbox/coder`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mm2onnx_mmrotate.angles import Version, norm_angle
from mmdeploy_ext.contract.facts import Facts, Mismatch, NotNegative, Positive, optional
from mmdeploy_ext.runtime.box_coders import constant
from mmdeploy_ext.runtime.geometry import sigmoid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    Rows = Mapping[str, Any]

QUARTER = float(np.pi / 2)
WH_RATIO_CLIP = 16 / 1000
"""Default of the coders' `decode`, which no head changes."""


@dataclasses.dataclass(frozen=True)
class Angles(Facts):
    """Classes of angles, degrees.

    Attributes:
        width: of each class.
        range: of all.
        offset: how far below zero the first begins.
        sigmoid: whether the best class is that of the highest score, not logit.
    """

    width: Positive
    range: Positive
    offset: NotNegative
    sigmoid: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta(Facts):
    """Settings of a coder of deltas.

    Attributes:
        norm_factor: 0: none.
        ctr_clamp: pixels; 0: none.
        angles: of heads with classes of angles (CSL).
        replaced: whether the best class is the angle of the box; else it is the delta of the angle.
    """

    means: tuple[float, float, float, float, float]
    stds: tuple[Positive, Positive, Positive, Positive, Positive]
    wh_ratio_clip: Positive
    norm_factor: NotNegative
    edge_swap: bool
    proj_xy: bool
    ctr_clamp: NotNegative
    version: Version
    angles: Angles | None = optional()
    replaced: bool | None = optional()
    type: Literal['delta', 'upright_delta', 'rotated_delta']

    def check(self) -> None:
        if (self.angles is None) != (self.replaced is None):
            raise Mismatch('angles and replaced: got one of them, expected both or none')


def delta_of(coder: Any, kind: str, **angles: Any) -> Delta:
    """Return the settings of a live coder; of one of upright priors, without angles, `proj_xy` is False."""
    return Delta(
        means=list(map(float, coder.means)),
        stds=list(map(float, coder.stds)),
        wh_ratio_clip=WH_RATIO_CLIP,
        norm_factor=float(coder.norm_factor or 0),
        edge_swap=bool(coder.edge_swap),
        proj_xy=bool(getattr(coder, 'proj_xy', False)),
        ctr_clamp=float(coder.ctr_clamp) if coder.add_ctr_clamp else 0.0,
        version=coder.angle_range,
        type=kind,
        **angles,
    )


def boxes_of_deltas(xp: ModuleType, priors: Any, rows: Rows, coder: Delta, level: int = 0) -> Any:
    """Return boxes (B, A, 5) x, y, width, height in pixels, and angle in radians, which priors become.

    Deltas are moves in sizes of the prior, along its sides with `proj_xy` and else along x and y, logarithms
    of the ratios of sizes, and an angle that is added, with a `norm_factor` in units of that times pi. The
    sum ends in the interval of the version, see `norm_angle`; in 'oc' it stays as it is, and so does an angle
    that is `replaced`. With `edge_swap` the width is the longer side: where sides are exchanged for that, a
    quarter turn is added to the sum. Boxes are not clipped.

    Args:
        xp: numpy or torch.
        priors: (1 or B, A, 5) boxes; of a two-stage head (B, K, 1, 5), whose deltas have an axis more, too.
        rows: name of an output of the head -> its values at the priors: `bbox_pred` (B, A, 5), the deltas,
            and of heads with classes of angles (CSL) `angle_cls` (B, A, classes).
        coder: settings of the coder.
        level: is not used, since all levels have the same settings.
    """
    deltas = rows['bbox_pred']
    deltas = deltas * constant(coder.stds, deltas) + constant(coder.means, deltas)
    turn = deltas[..., 4]
    if coder.angles and not coder.replaced:
        mean, deviation = coder.means[4], coder.stds[4]
        turn = angle_of_class(xp, rows['angle_cls'], coder.angles) * deviation + mean
    if coder.norm_factor:
        turn = turn * float(coder.norm_factor * np.pi)
    x, y, width, height, angle = (priors[..., column] for column in range(5))
    bound = float(np.float32(abs(np.log(coder.wh_ratio_clip))))
    clamp = coder.ctr_clamp
    dx, dy = width * deltas[..., 0], height * deltas[..., 1]
    if coder.proj_xy:
        cos, sin = xp.cos(angle), xp.sin(angle)
        dx, dy = (
            deltas[..., 0] * width * cos - deltas[..., 1] * height * sin,
            deltas[..., 0] * width * sin + deltas[..., 1] * height * cos,
        )
    elif clamp:
        dx, dy = xp.clip(dx, -clamp, clamp), xp.clip(dy, -clamp, clamp)
    growth = xp.clip(deltas[..., 2:4], None if clamp else -bound, bound)
    width, height = width * xp.exp(growth[..., 0]), height * xp.exp(growth[..., 1])
    angle = norm_angle(xp, angle + turn, coder.version)
    if coder.edge_swap:
        longer = width > height
        width, height = xp.where(longer, width, height), xp.where(longer, height, width)
        angle = norm_angle(xp, xp.where(longer, angle, angle + QUARTER), coder.version)
    if coder.angles and coder.replaced:
        angle = angle_of_class(xp, rows['angle_cls'], coder.angles)
    return xp.stack([x + dx, y + dy, width, height, angle], -1)


def angle_of_class(xp: ModuleType, logits: Any, angles: Angles) -> Any:
    """Return the middle (B, A), in radians, of the best class of angles, of equal ones the first.

    It is mmrotate's `CSLCoder`. `logits` are (B, A, classes) of an output.
    """
    scores = sigmoid(logits) if angles.sigmoid else logits
    classes = scores.argmax(-1)
    number = classes.astype(np.float32) if isinstance(classes, np.ndarray) else classes.to(logits.dtype)
    degrees = xp.fmod((number + 0.5) * angles.width, angles.range) - angles.offset
    return degrees * float(np.pi / 180)
