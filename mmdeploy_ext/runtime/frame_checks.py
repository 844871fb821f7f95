"""Checks of a frame before it may change the memory. N cameras, H, W network input in pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import DataError, ShapeError
from mmdeploy_ext.runtime.geometry import not_rigid
from mmdeploy_ext.runtime.preprocess.cam2img import intrinsics_problem, projection_problem
from mmdeploy_ext.runtime.preprocess.cameras import Calibration

if TYPE_CHECKING:
    from collections.abc import Collection

    from mmdeploy_ext.runtime.frames import Frame


def check_fields(frame: Frame, names: Collection[str], num_cameras: int) -> dict[str, Any]:
    """Copy the fields `names` of a frame, with checks of matrices, pose and time."""
    values: dict[str, Any] = {}
    if 'intrinsics' in names:
        calibration = None
        if frame.lidar2img is not None and frame.intrinsics is not None:
            calibration = Calibration(frame.lidar2img, frame.intrinsics)
        values['lidar2img'], values['intrinsics'] = check_calibration(calibration, num_cameras)
    elif 'lidar2img' in names:
        values['lidar2img'] = check_matrices('lidar2img', frame.lidar2img, num_cameras)
        for camera, matrix in enumerate(values['lidar2img']):
            if problem := projection_problem(matrix):
                raise DataError(f'lidar2img of camera {camera}: {problem}')
    if 'ego_pose' in names:
        values['ego_pose'] = check_pose(frame.ego_pose)
        if frame.ego_pose_inv is not None:
            values['ego_pose_inv'] = check_pose(frame.ego_pose_inv, 'ego_pose_inv')
    if 'timestamp_s' in names:
        values['timestamp_s'] = check_time(frame.timestamp_s)
    return values


def check_pose(pose: np.ndarray, name: str = 'ego_pose') -> np.ndarray:
    """Copy a rigid pose (4, 4) as float64; DataError for anything else."""
    pose = _copied(pose, name)
    if pose.shape != (4, 4):
        raise DataError(f'{name}: got shape {pose.shape}, expected (4, 4), LiDAR frame to global frame')
    if not np.isfinite(pose).all():
        raise DataError(f'{name}: got NaN or infinity: {pose.tolist()}; skip the frame or pass a valid pose')
    if problem := not_rigid(pose):
        raise DataError(f'{name}: is not a rigid transform: {problem}')
    return pose


def check_time(timestamp_s: float) -> float:
    """Finite seconds as float; DataError for anything else."""
    try:
        value = float(np.asarray(timestamp_s, np.float64).reshape(()))
    except (TypeError, ValueError):
        value = float('nan')
    if not np.isfinite(value):
        raise DataError(f'timestamp_s: got {timestamp_s}, expected absolute seconds as a float64')
    return value


def check_calibration(calibration: Calibration | None, num_cameras: int) -> Calibration:
    """Calibration as float64, `lidar2img` and `intrinsics` (N, 4, 4)."""
    if calibration is None:
        raise DataError(
            'calibration: is missing; expected lidar2img and intrinsics of all cameras '
            '(MultiViewRule.calibrate)'
        )
    lidar2img, intrinsics = calibration
    lidar2img = check_matrices('lidar2img', lidar2img, num_cameras)
    intrinsics = check_matrices('intrinsics', intrinsics, num_cameras)
    for camera, matrix in enumerate(intrinsics):
        if problem := intrinsics_problem(matrix):
            raise DataError(f'calibration: intrinsics of camera {camera}: {problem}')
    for camera, matrix in enumerate(np.linalg.solve(intrinsics, lidar2img)):
        if problem := not_rigid(matrix):
            raise DataError(
                f'calibration: lidar2img of camera {camera} is not its intrinsics times a rigid '
                f'transform: {problem}; both must refer to pixels of the network input'
            )
    return Calibration(lidar2img, intrinsics)


def check_matrices(name: str, matrices: np.ndarray, num_cameras: int) -> np.ndarray:
    """N finite, invertible matrices (N, 4, 4) as float64; DataError for anything else."""
    matrices = _copied(matrices, f'calibration: {name}')
    if matrices.shape != (num_cameras, 4, 4):
        raise DataError(
            f'calibration: {name} has shape {matrices.shape}, expected ({num_cameras}, 4, 4) for the '
            f'{num_cameras} cameras of this model'
        )
    for camera, matrix in enumerate(matrices):
        problem = ''
        if not np.isfinite(matrix).all():
            problem = 'has NaN or infinity'
        elif _is_singular(matrix):
            problem = 'is singular'
        if problem:
            raise DataError(f'calibration: {name} of camera {camera} {problem}: {matrix.tolist()}')
    return matrices


def check_prepared(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Prepared images (N, 3, H, W) float32 of `shape`; ShapeError for anything else."""
    images = np.asarray(images)
    if images.shape != shape or images.dtype != np.float32:
        raise ShapeError(
            f'images: got {images.dtype} {images.shape}, expected float32 {shape}; prepare them with '
            "mmdeploy_ext.runtime.preprocess.cameras.prepare_views and the file's rule, or export for this "
            'size'
        )
    return np.ascontiguousarray(images)


def _copied(values: Any, name: str) -> np.ndarray:
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f'{name}: expected an array of numbers: {error}') from error


def _is_singular(matrix: np.ndarray) -> bool:
    """Rows are normalised first: rows of pixels are long, the row of depth is short."""
    linear = matrix[:3, :3]
    lengths = np.linalg.norm(linear, axis=1)
    is_flat = (lengths < 1e-12).any() or abs(np.linalg.det(linear / lengths[:, None])) < 1e-6
    return bool(is_flat or matrix[3, 3] == 0)
