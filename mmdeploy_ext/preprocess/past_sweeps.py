"""Sweeps of the past, merged with the points of a key frame. Needs numpy only.

Source: mmdet3d 1.0.0rc6, LoadPointsFromMultiSweeps. Differs in: the nearest sweeps are taken; without
`test_mode` mmdet3d draws some.

Glossary: P points of D values.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AGE = 4
"""Column of a point that says how long before the key frame it was measured, s."""
CLOSE_M = 1.0
"""Points of past sweeps that are nearer than this in x and y are of the car itself."""


class PastSweep(Protocol):
    """A sweep of the past; see `runtime.infos.PastSweep`."""

    path: str
    rotation: np.ndarray
    translation: np.ndarray
    timestamp_s: float


@dataclasses.dataclass(frozen=True)
class PastSweeps:
    """Which sweeps of the past are merged with a key frame.

    Attributes:
        most: as many of the info's sweeps as this, the first ones.
        pad_empty: where the info has none, the points of the key frame stand for each of them.
        remove_close: points that are close to the car are left out.
    """

    most: int
    pad_empty: bool = False
    remove_close: bool = False

    def merge(
        self,
        points: np.ndarray,
        sweeps: Sequence[PastSweep],
        now_s: float,
        read: Callable[[str], np.ndarray],
    ) -> np.ndarray:
        """Return the points (P, D) float32 of a key frame and of past sweeps, in its coordinates.

        Args:
            points: (P, D) float32 of the key frame, whose ages are set to 0.
            sweeps: of its info, the last one first.
            now_s: seconds, absolute, of the key frame.
            read: returns the points (P, D) float32 of a path.
        """
        points[:, AGE] = 0
        if not sweeps and self.pad_empty:
            return np.concatenate([points, *[self._without_car(points)] * self.most])
        return np.concatenate([points, *(self._moved(sweep, now_s, read) for sweep in sweeps[: self.most])])

    def _moved(self, sweep: PastSweep, now_s: float, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """Return the points of a past sweep in the coordinates of the key frame, with their age."""
        points = self._without_car(read(sweep.path))
        points[:, :3] = points[:, :3] @ sweep.rotation.T
        points[:, :3] += sweep.translation
        points[:, AGE] = now_s - sweep.timestamp_s
        return points

    def _without_car(self, points: np.ndarray) -> np.ndarray:
        if not self.remove_close:
            return points
        return points[~(np.abs(points[:, :2]) < CLOSE_M).all(axis=1)]
