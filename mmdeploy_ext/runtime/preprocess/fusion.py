"""Pictures, calibration and points of one moment as input of a camera-LiDAR model.

Merged sweeps: mmdet3d 1.0.0rc6, LoadPointsFromMultiSweeps, always the nearest sweeps. P points of D values, N
cameras.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mmdeploy_ext.spec.preparation import FusionRule

POINTS = 'load_dim', 'use_dim', 'sweeps', 'pad_empty_sweeps', 'remove_close'
AGE = 4
"""Column of a point: seconds from its measurement to the key frame."""
CLOSE_M = 1.0
"""Points of past sweeps nearer than this in x and y belong to the ego car."""


@dataclasses.dataclass(frozen=True)
class PastSweep:
    """A past sweep and its transform to the key frame.

    Attributes:
        rotation: (3, 3), its LiDAR frame to the key frame's, dtype of the info.
        translation: (3,) m, after the rotation.
        timestamp_s: absolute.
    """

    path: str
    rotation: np.ndarray
    translation: np.ndarray
    timestamp_s: float


@dataclasses.dataclass(frozen=True)
class PastSweeps:
    """Merging of past sweeps with a key frame.

    Attributes:
        max_sweeps: most sweeps to take, newest first.
        pad_empty: without past sweeps, add the key frame's points `max_sweeps` times.
        remove_close: leave out points close to the car.
    """

    max_sweeps: int
    pad_empty: bool = False
    remove_close: bool = False

    def merge(
        self,
        points: np.ndarray,
        sweeps: Sequence[PastSweep],
        now_s: float,
        read: Callable[[str], np.ndarray],
    ) -> np.ndarray:
        """Points (P, D) float32 of key frame and past sweeps in the key frame, with ages in column `AGE`.

        Ages of `points` (P, D >= 5) are zeroed in place. `read` gives points (P, D) float32 of a path.
        ValueError: a past sweep has another D.
        """
        points[:, AGE] = 0
        if not sweeps and self.pad_empty:
            return np.concatenate([points, *[self._without_car(points)] * self.max_sweeps])
        clouds = [points]
        for sweep in sweeps[: self.max_sweeps]:
            past_points = self._without_car(read(sweep.path))
            past_points[:, :3] = past_points[:, :3] @ sweep.rotation.T
            past_points[:, :3] += sweep.translation
            past_points[:, AGE] = now_s - sweep.timestamp_s
            clouds.append(past_points)
        return np.concatenate(clouds)

    def _without_car(self, points: np.ndarray) -> np.ndarray:
        if not self.remove_close:
            return points
        return points[~(np.abs(points[:, :2]) < CLOSE_M).all(axis=1)]


def past_of(rule: FusionRule) -> PastSweeps | None:
    """The merging of a rule; None: the key frame alone."""
    return PastSweeps(rule.sweeps, rule.pad_empty_sweeps, rule.remove_close) if rule.sweeps else None
