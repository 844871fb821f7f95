"""Rotated boxes of one image.

A box (cx, cy, w, h, angle) is turned by its angle from the x axis of the picture towards its y axis,
clockwise on the screen. Two readings of one rectangle differ by whole quarter turns: w and h are exchanged if
the number is odd. The angle version of a model says which reading its boxes have, see `angles.py`.

Glossary: n results.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mmdeploy_ext.runtime.detections import Scored, rows_with_scores

UNIT_CORNERS = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
"""Corners of the unit square around the origin, in the order of mmrotate's `obb2poly`."""


@dataclasses.dataclass(frozen=True)
class RotatedDetections(Scored):
    """Rotated boxes of one image, best first but for candidates that are still to be sorted.

    `Scored` and its base describe how results are selected, sorted and written.

    Attributes:
        boxes: (n, 5) float32 x and y of the centre, width, height, and angle in radians; in pixels of the
            network input; once they are divided by the scale factor, by `scaled` or before, of the original
            image.
        scores: (n,) float32 in 0..1.
        labels: (n,) int64 class indices.
        version: angle version of all boxes: 'oc', 'le90' or 'le135'.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    version: str = 'le90'

    @property
    def corners(self) -> np.ndarray:
        """The corners (n, 4, 2) float64 of the boxes, x and y in pixels, in the order of `corners_of`."""
        return corners_of(self.boxes)

    @property
    def outlines(self) -> np.ndarray:
        return self.corners

    @property
    def bboxes_xyxy(self) -> np.ndarray:
        """The upright boxes (n, 4) float32 around the rotated ones, not clipped."""
        corners = self.corners
        return np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)

    def scaled(self, scale_factor: np.ndarray) -> RotatedDetections:
        """Return the boxes divided by `scale_factor` (4,), `w h w h`; as in mmrotate, angles stay."""
        ratios = np.append(scale_factor, 1).astype(np.float32)
        return dataclasses.replace(self, boxes=self.boxes / ratios)

    def to_mmdet_result(self, num_classes: int) -> list[np.ndarray]:
        """Return per class (n, 6) float32 cx cy w h angle score, as mmrotate's `rbbox2result`."""
        return self.by_class(rows_with_scores(self.boxes, self.scores), num_classes)

    def place(self, index: int) -> dict[str, Any]:
        """Return centre, width and height in pixels and the angle in radians, and the four corners.

        They are `bbox_cxcywha`, and `corners_xy`, a list of x, y in the order of `corners_of`; rounded to
        three decimals, the angle to six.
        """
        *pixels, angle = self.boxes[index].tolist()
        return dict(
            bbox_cxcywha=[*(round(value, 3) for value in pixels), round(angle, 6)],
            corners_xy=self[index : index + 1].corners[0].round(3).tolist(),
        )


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Return the corners (n, 4, 2) float64 of boxes (n, 5), x and y in pixels.

    The first is the upper left one of a box that is not turned; the others follow clockwise on the screen.
    """
    boxes = boxes.astype(np.float64)
    offsets = UNIT_CORNERS * boxes[:, None, 2:4]
    cos, sin = np.cos(boxes[:, 4:]), np.sin(boxes[:, 4:])
    x = cos * offsets[..., 0] - sin * offsets[..., 1]
    y = sin * offsets[..., 0] + cos * offsets[..., 1]
    return np.stack([x, y], axis=-1) + boxes[:, None, :2]
