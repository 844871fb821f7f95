"""From a head's outputs to rotated boxes, written once for numpy and PyTorch: `xp` is either of the two.

A coder is a function of `CODERS`. It returns boxes (B, A, 5): x and y of the centre, width, height in pixels,
not clipped, and the angle in radians; it takes

- `xp`: numpy or torch.
- `priors`: of one level, for `delta` (1, A, 5) boxes or, of refined heads, (B, A, 5); for the others (1, A,
  2) points.
- `rows`: name of an output of the head -> its values at the priors, (B, A, columns).
- `coder`: its settings.
- `level`: index of the level, for settings that every level has.

Glossary: B images, A priors of a level, C classes. Source: mmrotate 0.3.4 `core/bbox/coder`, and the
`_get_bboxes_single` of the heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm2onnx_mmrotate.angles import norm_angle
from mm2onnx_mmrotate.deltas import angle_of_class, boxes_of_deltas
from mm2onnx_mmrotate.dense.smallest_rectangle import smallest_rectangle
from mmdeploy_ext.runtime.geometry import sigmoid, softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from mm2onnx_mmrotate.dense.facts import HeadFacts

    Rows = Mapping[str, Any]


def distance(xp: ModuleType, priors: Any, rows: Rows, coder: Any, level: int) -> Any:
    """Return the boxes of distances from a point to the sides of a box that is turned around it.

    It is mmrotate's `DistanceAnglePointCoder`. `bbox_pred` are left, top, right and bottom, in pixels,
    `angle_pred` the angle in radians or, with the setting `angles`, logits of classes of angles. The angle
    ends in the interval of the version, see `norm_angle`; in 'oc' it stays as it is.
    """
    sides, angle = rows['bbox_pred'], rows['angle_pred']
    angle = angle_of_class(xp, angle, coder.angles) if coder.angles else angle[..., 0]
    cos, sin = xp.cos(angle), xp.sin(angle)
    size = sides[..., :2] + sides[..., 2:]
    shift = (sides[..., 2:] - sides[..., :2]) / 2
    x = priors[..., 0] + (cos * shift[..., 0] - sin * shift[..., 1])
    y = priors[..., 1] + (sin * shift[..., 0] + cos * shift[..., 1])
    return xp.stack([x, y, size[..., 0], size[..., 1], norm_angle(xp, angle, coder.version)], -1)


def points(xp: ModuleType, priors: Any, rows: Rows, coder: Any, level: int) -> Any:
    """Return the smallest rectangles around points, which are offsets y, x in strides from a prior."""
    offsets = rows['pts_pred']
    boxes = smallest_rectangle(xp, offsets[..., 1::2], offsets[..., 0::2], coder.version)
    boxes, stride = [boxes[..., column] for column in range(5)], coder.strides[level]
    x, y = boxes[0] * stride + priors[..., 0], boxes[1] * stride + priors[..., 1]
    return xp.stack([x, y, boxes[2] * stride, boxes[3] * stride, boxes[4]], -1)


CODERS: dict[str, Callable[..., Any]] = dict(delta=boxes_of_deltas, distance=distance, points=points)
"""Type of a coder -> its function."""


def boxes_of(xp: ModuleType, facts: HeadFacts, rows: Rows, priors: Any, level: int) -> Any:
    """Return the boxes (B, A, 5) of one level.

    `priors` are (A, 5) boxes or (A, 2) points; refined heads, whose priors are the output `rois`, read none.
    """
    priors = rows['rois'] if facts.head.refined else priors[None]
    return CODERS[facts.coder.type](xp, priors, rows, facts.coder, level)


def scores_of(xp: ModuleType, facts: HeadFacts, rows: Rows) -> Any:
    """Return the class scores (B, A, C) of one level in 0..1, without the background."""
    logits = rows['cls_score']
    if facts.head.activation == 'softmax':
        return softmax(logits)[..., :-1]
    return sigmoid(logits)


def factors_of(xp: ModuleType, facts: HeadFacts, rows: Rows) -> Any:
    """Return the score factors (B, A) of one level, or None."""
    factor = facts.head.factor
    return sigmoid(rows[factor][..., 0]) if factor else None
