"""Generated frames of cameras and a LiDAR.

Glossary: N cameras, P points, V values per point.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.runtime.frames import FusedFrame, of_rays
from mmdeploy_ext.synthetic.drive import synthetic_drive
from mmdeploy_ext.synthetic.moments import generated_sweeps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.preprocess.fusion import FusionRule

HIDDEN_POINTS = 500
"""Points per camera that lie behind others."""


def fused_frames(rule: FusionRule, count: int) -> Iterator[FusedFrame]:
    """Yield `count` frames of a synthetic drive with sweeps of a generated world."""
    if rule.views is None:
        for index, sweep in enumerate(generated_sweeps(rule.voxels, count)):
            yield FusedFrame(sweep.points, f'generated frame {index}')
        return
    points_of_frames = itertools.repeat(np.zeros((0, 5), np.float32), count)
    if rule.voxels is not None:
        points_of_frames = (sweep.points for sweep in generated_sweeps(rule.voxels, count))
    pairs = zip(points_of_frames, synthetic_drive(count, rule.views), strict=True)
    for index, (points, drive_frame) in enumerate(pairs):
        rng = np.random.default_rng(index)
        img_aug = rule.img_aug_matrix().astype(np.float64)
        if index % 2:
            img_aug[:, [0, 1], [0, 1]] *= rng.uniform(0.9, 1.1, (len(img_aug), 1))
            img_aug[:, :2, 3] += rng.uniform(-0.05, 0.05, (len(img_aug), 2)) * rule.views.input_size
        input_to_picture = np.linalg.inv(of_rays(img_aug))
        lidar2image = input_to_picture @ drive_frame.lidar2img
        intrinsics = input_to_picture @ drive_frame.intrinsics
        camera2lidar = np.linalg.inv(lidar2image) @ intrinsics
        if rule.voxels is not None:
            points = _with_hidden_points(points, camera2lidar[:, :3, 3], rng)
        lidar_aug = np.eye(4)
        if index % 2:
            angle, scale = rng.uniform(-0.4, 0.4), rng.uniform(0.95, 1.05)
            lidar_aug[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            lidar_aug[:3, :3] *= scale
            lidar_aug[:3, 3] = rng.uniform(-0.3, 0.3, 3)
        points[:, :3] = points[:, :3] @ lidar_aug[:3, :3].T + lidar_aug[:3, 3]
        calibration = dict(
            camera_intrinsics=intrinsics,
            camera2lidar=camera2lidar,
            lidar2image=lidar2image,
            img_aug_matrix=img_aug,
            lidar_aug_matrix=lidar_aug,
        )
        yield FusedFrame(
            points.astype(np.float32),
            f'generated frame {index}',
            images=drive_frame.images,
            calibration={name: matrix.astype(np.float32) for name, matrix in calibration.items()},
        )


def _with_hidden_points(points: np.ndarray, cameras: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    hidden = points[rng.integers(len(points), size=(len(cameras), HIDDEN_POINTS))].astype(np.float64)
    hidden[..., :3] = cameras[:, None] + rng.uniform(1.3, 3.0) * (hidden[..., :3] - cameras[:, None])
    joint = np.concatenate([points, hidden.reshape(-1, points.shape[1]).astype(points.dtype)])
    return joint[rng.permutation(len(joint))]
