"""The calibration of cameras and LiDAR, `FusedFrame.calibration`. Needs numpy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.frames import check_matrix
from mmdeploy_ext.runtime.preprocess.cam2img import intrinsics_problem

MATRICES = 'camera_intrinsics', 'camera2lidar', 'lidar2image', 'img_aug_matrix', 'lidar_aug_matrix'
"""Matrices: camera to raw picture, camera to LiDAR, LiDAR to raw picture, raw picture to network, LiDAR to
points."""

INVERTED = ('camera_intrinsics', 'camera2lidar', 'img_aug_matrix', 'lidar_aug_matrix')
"""Matrices that need an inverse."""

LIDAR2IMAGE_RTOL = 1e-3
"""Tolerance between two ways to compute `lidar2image`, relative to its largest number."""


def check_calibration(matrices: Mapping[str, np.ndarray], cameras: int, name: str = '') -> None:
    name = name or 'frame'
    for key in MATRICES:
        shape = (4, 4) if key == 'lidar_aug_matrix' else (cameras, 4, 4)
        check_matrix(matrices, key, shape, name)
        square = matrices[key].reshape(-1, 4, 4)[:, :3, :3].astype(np.float64)
        singular = np.flatnonzero(np.abs(np.linalg.det(square)) < 1e-12)
        if key in INVERTED and len(singular):
            raise DataError(f'{name}: {key}: matrix {singular[0]} has no inverse; correct the calibration')
    for index, matrix in enumerate(matrices['camera_intrinsics']):
        if problem := intrinsics_problem(matrix):
            raise DataError(f'{name}: camera_intrinsics of camera {index}: {problem}')
    # both ways from the LiDAR to a picture have to be the same; the network reads no last row
    cameras_matrices = (
        matrices[key].astype(np.float64) for key in ('camera_intrinsics', 'camera2lidar', 'lidar2image')
    )
    last_row = np.array([[0.0, 0.0, 0.0, 1.0]])
    for index, (intrinsics, camera2lidar, lidar2image) in enumerate(zip(*cameras_matrices, strict=True)):
        lidar2camera = np.linalg.inv(np.concatenate([camera2lidar[:3], last_row]))
        gap = np.abs(intrinsics[:3] @ lidar2camera - lidar2image[:3]).max()
        if not gap <= LIDAR2IMAGE_RTOL * np.abs(lidar2image[:3]).max():
            raise DataError(
                f'{name}: matrices of camera {index} disagree: lidar2image is not camera_intrinsics times '
                f'the inverse of camera2lidar (largest difference {gap:.3g}); list the cameras of both in '
                'one order'
            )
