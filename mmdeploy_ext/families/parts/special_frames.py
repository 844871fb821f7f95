"""Samples that trigger what ordinary ones do not: nothing to see, and rigs in which one thing changed.

Glossary: N cameras.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from pyquaternion import Quaternion

from mmdeploy_ext.runtime.frames import FusedFrame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.frames import Frame, Sweep

FOCAL, ALONE = 1.04, 1.0004
"""Factors of a focal length: of a camera whose matrices all change, and of one matrix alone, within what the
checks of a calibration let through."""
ROLL_RAD = np.pi / 3
"""Angle about the optical axis of a camera whose intrinsics turn the picture back: focal lengths halve."""
MOVED_M, TURNED = (0.3, -0.2, 0.1), Quaternion(axis=[0.1, 0.2, 1.0], degrees=2.0)
SPARSER = 8
STEP_S = 0.4
"""Between frames of a drive."""


def plain_sweep(sweep: Sweep, limits: Sequence[float]) -> Sweep:
    """Return a sweep of a single point: the one in range that is the furthest from the middle."""
    low, high = np.float32(limits[:3]), np.float32(limits[3:])
    inside = ((sweep.points[:, :3] > low) & (sweep.points[:, :3] < high)).all(1)
    distances = np.where(inside, np.linalg.norm(sweep.points[:, :2], axis=1), -1)
    return dataclasses.replace(sweep, points=sweep.points[[distances.argmax()]], name='one point')


def _moved() -> np.ndarray:
    """Return a (4, 4) rigid transform that is small and no unit matrix."""
    matrix = TURNED.transformation_matrix
    matrix[:3, 3] = MOVED_M
    return matrix


def _focal(matrices: np.ndarray, camera: int, factor: float) -> np.ndarray:
    changed = matrices.copy()
    changed[camera, [0, 1], [0, 1]] *= factor
    return changed


def _rolled(intrinsics: np.ndarray, camera: int) -> np.ndarray:
    """Return intrinsics (N, 4, 4) of which one camera's turn the picture about the optical axis.

    With the camera turned the other way, the same pixels see the same points: `lidar2img` stays as it is, and
    both matrices still differ by a rigid transform, however far the intrinsics are from what they were.
    """
    changed = intrinsics.copy()
    changed[camera] = changed[camera] @ Quaternion(axis=[0, 0, 1], radians=ROLL_RAD).transformation_matrix
    return changed


def changed_drive(frame: Frame) -> Iterator[Frame]:
    """Yield frames of one drive: as it is, each with one more change of its rig, and one without pictures.

    A frame differs from the one before it in one thing alone, so that what keeps something of the last rig
    has to look at all of it.
    """
    extrinsics = np.linalg.solve(frame.intrinsics, frame.lidar2img)
    last = len(frame.images) - 1
    focal = _focal(frame.intrinsics, 0, FOCAL)
    moved = extrinsics.copy()
    moved[last] = moved[last] @ _moved()
    changes = {
        'the rig as it was': {},
        'another focal length': dict(intrinsics=focal, lidar2img=focal @ extrinsics),
        'another place of a camera': dict(lidar2img=focal @ moved),
        'intrinsics alone': dict(intrinsics=_rolled(focal, last)),
        'pictures of one colour': dict(images=np.zeros_like(frame.images)),
    }
    for name, values in changes.items():
        frame = dataclasses.replace(
            frame, **values, name=name, timestamp_s=frame.timestamp_s + STEP_S, scene_token='special frames'
        )
        yield frame


def plain_moment(frame: FusedFrame, limits: Sequence[float] | None) -> FusedFrame:
    """Return a moment of one point in a range, where there are points, and of pictures of one colour."""
    plain = frame if limits is None else plain_sweep(frame, limits)
    images = None if frame.images is None else np.zeros_like(frame.images)
    return dataclasses.replace(plain, images=images, name='nothing to see')


def changed_rigs(frame: FusedFrame) -> Iterator[FusedFrame]:
    """Yield moments of cameras and a LiDAR, each with one more change of the rig.

    They have every eighth point: what the LiDAR alone sees is not at issue.
    """
    frame = dataclasses.replace(frame, points=frame.points[::SPARSER])
    matrices = {name: np.asarray(matrix, np.float64) for name, matrix in frame.calibration.items()}
    last = len(matrices['camera_intrinsics']) - 1
    for name in (
        'the rig as it was',
        'another focal length',
        'another place of a camera',
        'another cut of a picture',
        'points that were moved',
        'intrinsics alone',
        'lidar2image alone',
    ):
        intrinsics, poses = matrices['camera_intrinsics'], matrices['camera2lidar'].copy()
        if name == 'another focal length':
            matrices['camera_intrinsics'] = intrinsics = _focal(intrinsics, 0, FOCAL)
        elif name == 'another place of a camera':
            poses[last] = _moved() @ poses[last]
            matrices['camera2lidar'] = poses
        elif name == 'another cut of a picture':
            matrices['img_aug_matrix'] = matrices['img_aug_matrix'].copy()
            matrices['img_aug_matrix'][last, :2, 3] += 3.0
        elif name == 'points that were moved':
            matrices['lidar_aug_matrix'] = _moved() @ matrices['lidar_aug_matrix']
        if name.startswith('another'):
            matrices['lidar2image'] = intrinsics @ np.linalg.inv(poses)
        elif name.endswith('alone'):
            key = 'lidar2image' if name.startswith('lidar2image') else 'camera_intrinsics'
            matrices[key] = _focal(matrices[key], last, ALONE)
        calibration = {key: np.float32(value) for key, value in matrices.items()}
        yield dataclasses.replace(frame, calibration=calibration, name=name)
