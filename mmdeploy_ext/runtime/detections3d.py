"""Detections of one frame in 3D, in the LiDAR frame. Needs numpy only."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.detections import Scored

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Detections3D(Scored):
    """Boxes of one frame, see `Scored`.

    Attributes:
        boxes: (n, 9) float32: x, y, z of the bottom centre in metres, the three sizes in metres in the order
            of mmdet3d's `LiDARInstance3DBoxes` columns, yaw in radians, vx, vy in m/s; LiDAR frame.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def place(self, index: int) -> dict[str, Any]:
        """See `Scored.place`: the nine columns."""
        return dict(box=[round(float(value), 4) for value in self.boxes[index]])


def in_range(boxes: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """Return whether the places of boxes (n, 3 or more) are in a range of six numbers, ends included."""
    low, high = np.float32(limits[:3]), np.float32(limits[3:])
    return ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(1)
