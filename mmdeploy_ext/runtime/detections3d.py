"""3D detections of one frame in the LiDAR frame. n boxes. Needs numpy only."""

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
    """Boxes of one frame.

    Attributes:
        boxes: (n, 9) float32, columns of mmdet3d 1.x's `LiDARInstance3DBoxes`: x, y, z of the bottom centre,
            length, width, height in metres, yaw in radians from x counter-clockwise, velocity vx, vy in m/s
            or 0.
        ids: (n,) int64 track ids, -1 for none; None without tracking.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    ids: np.ndarray | None = None

    def place(self, index: int) -> dict[str, Any]:
        place: dict[str, Any] = dict(box=[round(float(value), 4) for value in self.boxes[index]])
        if self.ids is not None:
            place['track_id'] = int(self.ids[index])
        return place

    def ground_lines(self) -> list[tuple[np.ndarray, int]]:
        """Lines (P, 2) on the ground to draw, each with the class of its colour, -1 for white."""
        return []


def in_range(boxes: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """(n,) bool: places of boxes (n, 3 or more) within `limits` (low x, y, z, high x, y, z), inclusive."""
    low, high = np.float32(limits[:3]), np.float32(limits[3:])
    return ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(1)


def seen_from_above(boxes: np.ndarray, convention: str) -> np.ndarray:
    """Return x, y, two sizes and yaw counter-clockwise (n, 5) of boxes (n, 7 or 9) of mmdet3d 0.17 or 1.x."""
    columns = boxes[:, [0, 1, 3, 4, 6]]
    if convention == '0.17':
        columns[:, 4] *= -1
    return columns


def in_lidar_columns(boxes: np.ndarray) -> np.ndarray:
    """Convert boxes (n, 7 or 9) of mmdet3d 0.x to 1.0, arrays or tensors; its own inverse.

    0.x, as BEVFusion: x, y, z, w, l, h, yaw from -y clockwise; 1.0: l, w, h, yaw from x counter-clockwise.
    """
    converted = boxes[:, [0, 1, 2, 4, 3, 5, *range(6, boxes.shape[1])]]
    converted[:, 6] = -boxes[:, 6] - math.pi / 2
    return converted
