"""Moments of a data set's infos as the model takes them: pictures, points, sweeps of the past, matrices.

Needs numpy and OpenCV.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.runtime.exported import Runtime
from mmdeploy_ext.runtime.frames import FusedFrame, invert_pose
from mmdeploy_ext.runtime.infos import find_file, past_sweeps
from mmdeploy_ext.runtime.points import read_points

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mmdeploy_ext.preprocess.fusion import FusionRule
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import StepResult
    from mmdeploy_ext.runtime.infos import RigFrame

NO_POINTS = np.zeros((0, 5), np.float32)


class Detecting(Runtime):
    """What the runtimes of all contracts share: a moment as a camera and a LiDAR gave it, to its boxes."""

    _rig: tuple[bytes, Any] = b'', None

    def of_rig(self, matrices: Arrays, names: Sequence[str], make: Callable[..., Any]) -> Any:
        """Return what `make` gives of a calibration, or gave where these matrices are those of last time."""
        key = b''.join(np.ascontiguousarray(matrices[name], np.float32).tobytes() for name in names)
        if self._rig[0] != key:
            self._rig = key, make(matrices)
        return self._rig[1]

    @abc.abstractmethod
    def step(self, frame: FusedFrame) -> StepResult:
        """Detect in one moment of all sensors.

        Raises:
            ShapeError: pictures or matrices of other shapes.
            DataError: points or matrices that cannot be.
            InferenceError: the engine failed or gave NaN.
        """

    def detect(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> Detections3D:
        """Detect in one frame of a data set's infos; see `moment`."""
        return self.step(self.moment(images_bgr, rig, root)).detections

    def moment(
        self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: str | Path | None = None
    ) -> FusedFrame:
        """See the function of this name."""
        return moment(images_bgr, rig, self.rule, root)


def moment(
    images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: FusionRule, root: str | Path | None = None
) -> FusedFrame:
    """Return one frame of `read_frames`, and its N pictures (h, w, 3) uint8, as the model takes it.

    `root` is the folder of the data set, where its files are not where the info says.

    Raises:
        DataError: a sweep that lacks, or does not fit.
        ShapeError: pictures of another size.
    """
    images = rule.views.apply(images_bgr)
    intrinsics = np.tile(np.eye(4), (len(images), 1, 1))
    intrinsics[:, :3, :3] = rig.intrinsics
    calibration = dict(
        camera_intrinsics=intrinsics,
        camera2lidar=invert_pose(rig.lidar2cam),
        lidar2image=rig.lidar2img,
        img_aug_matrix=rule.img_aug_matrix(),
        lidar_aug_matrix=np.eye(4),
    )
    return FusedFrame(
        points_of(rig, rule, root),
        rig.name,
        images=images,
        calibration={name: matrix.astype(np.float32) for name, matrix in calibration.items()},
        image_files=tuple(str(path or '') for path in rig.pictures),
    )


def points_of(rig: RigFrame, rule: FusionRule, root: str | Path | None = None) -> np.ndarray:
    """Return the points (P, V) of a key frame and of sweeps before it, see `PastSweeps.merge`.

    None without LiDAR; for the errors see `moment`.
    """
    if rule.voxels is None:
        return NO_POINTS
    info, place = rig.info, f'{rig.source}: the info of {rig.name}'
    if 'lidar_path' not in info:
        raise DataError(f'{place} has no lidar_path; expected that of a sweep')

    def read(name: Any) -> np.ndarray:
        return read_points(find_file(name, rig.source, root, 'sweep'), rule.load_dim)

    points = read(info['lidar_path'])
    if rule.past:
        points = rule.past.merge(points, past_sweeps(info, place), rig.timestamp_s, read)
    return np.ascontiguousarray(points[:, list(rule.use_dim)])
