"""Detections of one frame in 3D, in the LiDAR frame. Needs numpy only.

Glossary: n boxes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.detections import Scored

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Detections3D(Scored):
    """Boxes of one frame, see `Scored`.

    Attributes:
        boxes: (n, 9) float32 in the LiDAR frame, with the columns of mmdet3d 1.x's `LiDARInstance3DBoxes`:
            x, y, z of the bottom centre, length, width, height in metres, yaw in radians from the x axis
            counter-clockwise, and velocity vx, vy in m/s, 0 of a model that gives none.
        scores: (n,) float32 in 0..1, best first.
        labels: (n,) int64 class indices.
        ids: (n,) int64, track ids of a model that follows objects, -1 for none; None of other models.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    ids: np.ndarray | None = None

    def place(self, index: int) -> dict[str, Any]:
        """Return `box`, the nine columns of one box, and `track_id` of a model that follows objects."""
        place: dict[str, Any] = dict(box=[round(float(value), 4) for value in self.boxes[index]])
        if self.ids is not None:
            place['track_id'] = int(self.ids[index])
        return place


def in_range(boxes: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """Return whether the places of boxes (n, 3 or more) are in the range `limits`, ends included: (n,) bool.

    These are six numbers: x, y, z of the lower corner, then of the upper one.
    """
    low, high = np.float32(limits[:3]), np.float32(limits[3:])
    return ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(1)


def in_lidar_columns(boxes: np.ndarray) -> np.ndarray:
    """Return boxes (n, 7 or 9) as mmdet3d 1.0 has them, from the columns and headings of mmdet3d 0.x.

    BEVFusion was trained with x, y, z, w, l, h, yaw from -y clockwise, and velocity; `Detections3D` has x, y,
    z, l, w, h, yaw from x counter-clockwise. The function is its own inverse, and takes tensors of PyTorch,
    too.
    """
    converted = boxes[:, [0, 1, 2, 4, 3, 5, *range(6, boxes.shape[1])]]
    converted[:, 6] = -boxes[:, 6] - math.pi / 2
    return converted
