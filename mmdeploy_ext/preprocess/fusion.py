"""Pictures, calibration and points of one moment made into the input of a model of cameras and LiDAR.

Source of the merged sweeps: mmdet3d 1.0.0rc6, LoadPointsFromMultiSweeps. Differs in: the nearest sweeps are
taken; without `test_mode` mmdet3d draws some. Glossary: P points of D values, N cameras.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np

from mmdeploy_ext.core.typed_json import JsonDataclass
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.preprocess.pictures import PreprocessRule
from mmdeploy_ext.preprocess.points import VoxelRule

POINTS = 'load_dim', 'use_dim', 'sweeps', 'pad_empty_sweeps', 'remove_close'
"""Fields of `FusionRule` about the reading of points."""
AGE = 4
"""Column of a point with the time from its measurement to the key frame, seconds."""
CLOSE_M = 1.0
"""Points of past sweeps that are nearer than this in x and y belong to the car itself."""


class PastSweep(Protocol):
    """A sweep of the past, with the transform of its points to the key frame: `runtime.infos.PastSweep`.

    Attributes:
        path: path of the file of its points.
        rotation: (3, 3) from its LiDAR frame to that of the key frame.
        translation: (3,) m, after the rotation.
        timestamp_s: absolute time of its measurement.
    """

    path: str
    rotation: np.ndarray
    translation: np.ndarray
    timestamp_s: float


@dataclasses.dataclass(frozen=True)
class PastSweeps:
    """The merging of past sweeps with a key frame.

    Attributes:
        max_sweeps: most sweeps that are taken, the first in the info, whose list begins with the newest.
        pad_empty: if the info has none, the points of the key frame are added `max_sweeps` times, by
            `remove_close` without those close to the car.
        remove_close: points that are close to the car are left out.
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
        """Return the points (P, D) float32 of a key frame and of past sweeps, in its coordinates.

        Column `AGE` of each is the time from its measurement to the key frame, seconds. `remove_close` leaves
        out points of past sweeps, by their places in the frame of their own sweep, and none of the key frame
        itself.

        Args:
            points: (P, D) float32 of the key frame, D at least 5; their ages are set to 0 in place.
            sweeps: sweeps of its info, the newest first.
            now_s: seconds, absolute, of the key frame.
            read: returns the points (P, D) float32 of a path, in an array that is changed; its errors pass.

        Raises:
            ValueError: points of a past sweep have another D than the key frame.
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


@dataclasses.dataclass(frozen=True)
class FusionRule(JsonDataclass):
    """The rules of both sensors.

    Attributes:
        views: rule of the pictures of several cameras, or that of one picture of any size (MVX-Net); None for
            a model of LiDAR alone.
        voxels: rule of the points; None for a model of cameras alone.
        load_dim: values per point in a file.
        use_dim: columns that the model takes, after sweeps of the past were merged.
        sweeps: most sweeps of the past, whose points follow those of the key frame; 0 takes none.
        pad_empty_sweeps: as `PastSweeps.pad_empty`.
        remove_close: as `PastSweeps.remove_close`.
    """

    views: MultiViewRule | PreprocessRule | None
    voxels: VoxelRule | None
    load_dim: int = 5
    use_dim: tuple[int, ...] = (0, 1, 2, 3, 4)
    sweeps: int = 0
    pad_empty_sweeps: bool = False
    remove_close: bool = False
    kind: Literal['fusion'] = 'fusion'

    @property
    def past(self) -> PastSweeps | None:
        """How sweeps of the past are merged; None for a model of the key frame alone."""
        return PastSweeps(self.sweeps, self.pad_empty_sweeps, self.remove_close) if self.sweeps else None

    def img_aug_matrix(self) -> np.ndarray:
        """Return (N, 4, 4), from pixels of the cameras' pictures to pixels of the network input.

        All N are the same: a `MultiViewRule` has one scale and one crop for all cameras.

        They map (x, y, depth, 1), of which x and y are pixels, already divided by the depth, see
        `runtime.frames.of_rays`. They are float32, float64 if `MultiViewRule.normalised_first`.

        Raises:
            AttributeError: a rule without pictures, or of one picture, which has no such matrices.
        """
        return np.tile(self.views.crop_matrix(4), (self.views.num_cameras, 1, 1))
