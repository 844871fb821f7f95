"""From the outputs of heads of proposals and regions to rotated boxes, for numpy and PyTorch (`xp`).

A coder of regions is a function of `CODERS`. It returns boxes (B, K, G, 5), and takes

- `xp`: numpy or torch.
- `regions`: (B, K, 1, 4) xyxy or (B, K, 1, 5) boxes.
- `rows`: name of an output of the head -> its values (B, K, G, columns): `bbox_pred`, the deltas, and of
  `gliding_vertex` also `fix_pred` (4 columns) and `ratio_pred` (1), shares in 0..1, no logits.
- `coder`: its settings.
- `clip_hw`: (B, 2) height and width that boxes, or their centres, are clipped to; not used by all.

Glossary: B images, K regions, G boxes per region (as many as classes, or 1), A anchors of a level; the 5
numbers of a box are x, y of the centre, width, height in pixels, and angle in radians, see `detections.py`.
Source: mmrotate 0.3.4 `core/bbox/coder`, `models/roi_heads/bbox_heads/gv_bbox_head.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Literal

import numpy as np

from mm2onnx_mmrotate.angles import Version
from mm2onnx_mmrotate.deltas import Delta
from mm2onnx_mmrotate.polygons import box_of_polygon, box_of_upright
from mmdeploy_ext.families.heads import Coder, constant
from mmdeploy_ext.families.heads import Delta as UprightDelta
from mmdeploy_ext.spec.facts import Facts

Rows = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlidingVertex(Facts):
    """Settings of a `GVBBoxHead`.

    Attributes:
        upright: coder of the upright box.
        clip: whether the upright box is clipped.
        ratio_thr: a box stays upright if its covered share exceeds it.
    """

    upright: UprightDelta
    clip: bool
    ratio_thr: float
    version: Version
    type: Literal['gliding_vertex'] = 'gliding_vertex'


def upright_delta(xp: ModuleType, regions: Any, rows: Rows, coder: Delta, clip_hw: Any) -> Any:
    """`DeltaXYWHAHBBoxCoder`: deltas of upright regions; boxes are not clipped."""
    return coder.boxes(xp, regions, rows, 0)


def rotated_delta(xp: ModuleType, regions: Any, rows: Rows, coder: Delta, clip_hw: Any) -> Any:
    """`DeltaXYWHAOBBoxCoder`: deltas of rotated regions; centres are clipped one pixel inside."""
    boxes = coder.boxes(xp, regions, rows, 0)
    upper = clip_hw[:, None, None] - 1
    x = xp.minimum(xp.clip(boxes[..., 0], 0, None), upper[..., 1])
    y = xp.minimum(xp.clip(boxes[..., 1], 0, None), upper[..., 0])
    return xp.concatenate([xp.stack([x, y], -1), boxes[..., 2:]], -1)


def gliding_vertex(xp: ModuleType, regions: Any, rows: Rows, coder: GlidingVertex, clip_hw: Any) -> Any:
    """`GVBBoxHead`: an upright box, how far its corners glide along its sides, and how much of it is covered.

    A box stays upright if its covered share exceeds `ratio_thr`.
    """
    upright = coder.upright.boxes(xp, regions, rows, 0)
    if coder.clip:
        height, width = clip_hw[:, None, None, 0], clip_hw[:, None, None, 1]
        ends = (width, height, width, height)
        clipped = [xp.minimum(xp.clip(upright[..., side], 0, None), end) for side, end in enumerate(ends)]
        upright = xp.stack(clipped, -1)
    x1, y1, x2, y2 = (upright[..., side] for side in range(4))
    width, height, glide = x2 - x1, y2 - y1, rows['fix_pred']
    top, right = x1 + width * glide[..., 0], y1 + height * glide[..., 1]
    bottom, left = x2 - width * glide[..., 2], y2 - height * glide[..., 3]
    x, y = xp.stack([top, x2, bottom, x1], -1), xp.stack([y1, right, y2, left], -1)
    boxes = box_of_polygon(xp, x, y, coder.version)
    covered = rows['ratio_pred'] > coder.ratio_thr
    return xp.where(covered, box_of_upright(xp, upright, coder.version), boxes)


CODERS: dict[str, Callable[..., Any]] = dict(
    upright_delta=upright_delta, rotated_delta=rotated_delta, gliding_vertex=gliding_vertex
)
"""Type of a coder of regions -> its function."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MidpointOffset(Coder):
    """`MidpointOffsetCoder` of proposals, which are not clipped.

    Deltas are of the upright bounds, and where the box touches their upper and their right side, in shares of
    the side from its middle.
    """

    means: tuple[float, ...]
    stds: tuple[float, ...]
    wh_ratio_clip: float
    version: Version
    type: Literal['midpoint_offset'] = 'midpoint_offset'

    @property
    def columns(self) -> Mapping[str, int]:
        return dict(bbox_pred=6)

    def boxes(self, xp: ModuleType, priors: Any, rows: Rows, level: int) -> Any:
        """Return boxes (B, A, 5) of priors (A, 4) or (B, A, 4) xyxy."""
        deltas = rows['bbox_pred']
        deltas = deltas * constant(self.stds, deltas) + constant(self.means, deltas)
        bound = float(np.float32(abs(np.log(self.wh_ratio_clip))))
        growth = xp.exp(xp.clip(deltas[..., 2:4], -bound, bound))
        sides = (priors[..., 2:] - priors[..., :2]) * growth
        move = (priors[..., 2:] - priors[..., :2]) * deltas[..., :2]
        centres = (priors[..., :2] + priors[..., 2:]) * 0.5 + move
        x, y, width, height = centres[..., 0], centres[..., 1], sides[..., 0], sides[..., 1]
        touch = xp.clip(deltas[..., 4:], -0.5, 0.5)
        shift_x, shift_y = touch[..., 0] * width, touch[..., 1] * height
        corners_x = xp.stack([x + shift_x, x + width * 0.5, x - shift_x, x - width * 0.5], -1)
        corners_y = xp.stack([y - height * 0.5, y + shift_y, y + height * 0.5, y - shift_y], -1)
        from_x, from_y = corners_x - x[..., None], corners_y - y[..., None]
        lengths = xp.sqrt(from_x * from_x + from_y * from_y)
        longest = xp.maximum(
            xp.maximum(lengths[..., 0], lengths[..., 1]), xp.maximum(lengths[..., 2], lengths[..., 3])
        )
        stretch = longest[..., None] / lengths
        return box_of_polygon(
            xp, from_x * stretch + x[..., None], from_y * stretch + y[..., None], self.version
        )
