"""Facts of one-stage heads of rotated boxes, and the coders of heads without deltas.

Glossary: B images, A priors of a level. Source: mmrotate 0.3.4 `core/bbox/coder`, and the
`_get_bboxes_single` of the heads.
"""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

from mm2onnx_mmrotate.angles import Version, norm_angle
from mm2onnx_mmrotate.deltas import Angles, Delta, angle_of_class
from mm2onnx_mmrotate.dense.smallest_rectangle import smallest_rectangle
from mmdeploy_ext.families.heads import Coder, DenseFacts
from mmdeploy_ext.spec.facts import Stride, optional


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance(Coder):
    """`DistanceAnglePointCoder`: distances from a point to the sides of a box that is turned around it.

    `bbox_pred` are left, top, right and bottom, in pixels, `angle_pred` the angle in radians or, with
    `angles`, logits of classes of angles. The angle ends in the interval of the version, see `norm_angle`; in
    'oc' it stays as it is.
    """

    version: Version
    angles: Angles | None = optional()
    prior_sizes = (2,)
    type: Literal['distance'] = 'distance'

    @property
    def columns(self) -> Mapping[str, int]:
        return dict(bbox_pred=4, angle_pred=1)

    def boxes(self, xp: ModuleType, priors: Any, rows: Mapping[str, Any], level: int) -> Any:
        sides, angle = rows['bbox_pred'], rows['angle_pred']
        angle = angle_of_class(xp, angle, self.angles) if self.angles else angle[..., 0]
        cos, sin = xp.cos(angle), xp.sin(angle)
        size = sides[..., :2] + sides[..., 2:]
        shift = (sides[..., 2:] - sides[..., :2]) / 2
        x = priors[..., 0] + (cos * shift[..., 0] - sin * shift[..., 1])
        y = priors[..., 1] + (sin * shift[..., 0] + cos * shift[..., 1])
        return xp.stack([x, y, size[..., 0], size[..., 1], norm_angle(xp, angle, self.version)], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points(Coder):
    """The smallest rectangles around points, which are offsets y, x in strides from a prior."""

    version: Version
    strides: tuple[Stride, ...]
    prior_sizes = (2,)
    type: Literal['points'] = 'points'

    @property
    def columns(self) -> Mapping[str, int]:
        return dict(pts_pred=4)

    def boxes(self, xp: ModuleType, priors: Any, rows: Mapping[str, Any], level: int) -> Any:
        offsets = rows['pts_pred']
        boxes = smallest_rectangle(xp, offsets[..., 1::2], offsets[..., 0::2], self.version)
        boxes, stride = [boxes[..., column] for column in range(5)], self.strides[level]
        x, y = boxes[0] * stride + priors[..., 0], boxes[1] * stride + priors[..., 1]
        return xp.stack([x, y, boxes[2] * stride, boxes[3] * stride, boxes[4]], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotatedDenseFacts(DenseFacts):
    """The facts of the last head.

    Attributes:
        clip_border: whether centres are clipped to the image.
        base_anchors: of a head whose priors are an output of the network it is the point 0, 0.
        coder: makes boxes (B, A, 5) x, y of the centre, width, height in pixels, and angle in radians.
        angle_version: of the results.
    """

    coder: Delta | Distance | Points
    angle_version: Version
