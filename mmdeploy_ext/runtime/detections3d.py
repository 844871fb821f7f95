"""Detections of one frame in 3D, in the LiDAR frame. Needs numpy only."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Detections3D:
    """Detections of one frame in descending score order.

    Attributes:
        boxes: (n, 9) float32: x, y, z of the bottom centre in metres, the three sizes in metres in the order
            of mmdet3d's `LiDARInstance3DBoxes` columns, yaw in radians, vx, vy in m/s; LiDAR frame.
        scores: (n,) float32 in 0..1.
        labels: (n,) int64 class indices.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Return the number of detections."""
        return len(self.scores)

    def above(self, score_thr: float) -> Detections3D:
        """Return those with at least `score_thr`."""
        keep = self.scores >= score_thr
        return Detections3D(self.boxes[keep], self.scores[keep], self.labels[keep])

    def to_json(self, classes: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Return one plain dict per detection."""
        return [
            dict(
                label=int(label),
                name=classes[label] if label < len(classes) else str(label),
                score=round(float(score), 6),
                box=[round(float(value), 4) for value in box],
            )
            for box, score, label in zip(self.boxes, self.scores, self.labels, strict=True)
        ]
