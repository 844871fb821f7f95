"""Boxes of deltas: the coders `DeltaXYWHAOBBoxCoder` and `DeltaXYWHAHBBoxCoder`, of both families.

Glossary: B images, A priors of a level. Source: mmrotate 0.3.4 `core/bbox/coder`.
"""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

import numpy as np

from mm2onnx_mmrotate.angles import Version, norm_angle
from mmdeploy_ext.families.heads import Coder, class_scores, constant
from mmdeploy_ext.spec.facts import Facts, Mismatch, NotNegative, Positive, optional

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
class Delta(Coder):
    """A coder of deltas, and with `angles` of classes of angles (CSL).

    Deltas are moves in sizes of the prior, along its sides with `proj_xy` and else along x and y, logarithms
    of the ratios of sizes, and an angle that is added, with a `norm_factor` in units of that times pi. The
    sum ends in the interval of the version, see `norm_angle`; in 'oc' it stays as it is, and so does an angle
    that is `replaced`. With `edge_swap` the width is the longer side: where sides are exchanged for that, a
    quarter turn is added to the sum.

    Attributes:
        norm_factor: 0: none.
        ctr_clamp: pixels; 0: none.
        angles: of heads with classes of angles.
        replaced: whether the best class is the angle of the box; else it is the delta of the angle.
        refined: whether the priors are an output of the network, `rois` (B, A, 5).
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
    refined: bool = optional(False)
    type: Literal['delta', 'upright_delta', 'rotated_delta']

    def check(self) -> None:
        if (self.angles is None) != (self.replaced is None):
            raise Mismatch('angles and replaced: got one of them, expected both or none')

    @property
    def columns(self) -> Mapping[str, int]:
        return dict(bbox_pred=5)

    def boxes(self, xp: ModuleType, priors: Any, rows: Mapping[str, Any], level: int) -> Any:
        """Return boxes (B, A, 5) x, y, width, height in pixels, and angle in radians, which priors become.

        Args:
            xp: numpy or torch.
            priors: (A, 4) xyxy, or (A, 5) or (B, A, 5) boxes; of regions (B, K, 1, 4 or 5), whose deltas have
                an axis more, too.
            rows: `bbox_pred` (B, A, 5), the deltas, and of heads with classes of angles `angle_cls`
                (B, A, classes).
            level: not used.
        """
        x, y, width, height, angle = self._priors(xp, rows['rois'] if self.refined else priors)
        deltas = rows['bbox_pred']
        deltas = deltas * constant(self.stds, deltas) + constant(self.means, deltas)
        turn = deltas[..., 4]
        if self.angles and not self.replaced:
            turn = angle_of_class(xp, rows['angle_cls'], self.angles) * self.stds[4] + self.means[4]
        if self.norm_factor:
            turn = turn * float(self.norm_factor * np.pi)
        bound = float(np.float32(abs(np.log(self.wh_ratio_clip))))
        clamp = self.ctr_clamp
        dx, dy = width * deltas[..., 0], height * deltas[..., 1]
        if self.proj_xy:
            cos, sin = xp.cos(angle), xp.sin(angle)
            dx, dy = (
                deltas[..., 0] * width * cos - deltas[..., 1] * height * sin,
                deltas[..., 0] * width * sin + deltas[..., 1] * height * cos,
            )
        elif clamp:
            dx, dy = xp.clip(dx, -clamp, clamp), xp.clip(dy, -clamp, clamp)
        growth = xp.clip(deltas[..., 2:4], None if clamp else -bound, bound)
        width, height = width * xp.exp(growth[..., 0]), height * xp.exp(growth[..., 1])
        angle = norm_angle(xp, angle + turn, self.version)
        if self.edge_swap:
            longer = width > height
            width, height = xp.where(longer, width, height), xp.where(longer, height, width)
            angle = norm_angle(xp, xp.where(longer, angle, angle + QUARTER), self.version)
        if self.angles and self.replaced:
            angle = angle_of_class(xp, rows['angle_cls'], self.angles)
        return xp.stack([x + dx, y + dy, width, height, angle], -1)

    def _priors(self, xp: ModuleType, priors: Any) -> list[Any]:
        """Return the five columns of boxes, or of upright ones xyxy."""
        # a trace knows no size: anchors of mmrotate are boxes, those of a file are upright
        if (priors.shape[-1] == 5) if xp is np else (self.type != 'upright_delta'):
            return [priors[..., column] for column in range(5)]
        centres, sides = (priors[..., :2] + priors[..., 2:]) * 0.5, priors[..., 2:] - priors[..., :2]
        return [centres[..., 0], centres[..., 1], sides[..., 0], sides[..., 1], xp.zeros_like(sides[..., 0])]


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


def angle_of_class(xp: ModuleType, logits: Any, angles: Angles) -> Any:
    """Return the middle (B, A), in radians, of the best class of angles, of equal ones the first.

    It is mmrotate's `CSLCoder`. `logits` are (B, A, classes) of an output.
    """
    classes = class_scores(xp, 'sigmoid' if angles.sigmoid else 'none', logits).argmax(-1)
    number = classes.astype(np.float32) if isinstance(classes, np.ndarray) else classes.to(logits.dtype)
    degrees = xp.fmod((number + 0.5) * angles.width, angles.range) - angles.offset
    return degrees * float(np.pi / 180)
