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


def changed_drive(frame: Frame) -> Iterator[Frame]:
    """Yield frames of one drive: as it is, with one thing of its rig changed each time, and without pictures.

    The same thing changes alone, so that what keeps something of the last rig has to look at all of it.
    """
    extrinsics = np.linalg.solve(frame.intrinsics, frame.lidar2img)
    last = len(frame.images) - 1
    moved = extrinsics.copy()
    moved[last] = moved[last] @ _moved()
    focal = _focal(frame.intrinsics, 0, FOCAL)
    changes = {
        'the rig as it was': {},
        'another focal length': dict(intrinsics=focal, lidar2img=focal @ extrinsics),
        'another place of a camera': dict(lidar2img=frame.intrinsics @ moved),
        'intrinsics alone': dict(intrinsics=_focal(frame.intrinsics, last, ALONE)),
        'pictures of one colour': dict(images=np.zeros_like(frame.images)),
    }
    for number, (name, values) in enumerate(changes.items()):
        yield dataclasses.replace(
            frame,
            **values,
            name=name,
            timestamp_s=frame.timestamp_s + number * STEP_S,
            scene_token='special frames',
        )


def changed_rigs(frame: FusedFrame, limits: Sequence[float] | None) -> Iterator[FusedFrame]:
    """Yield moments of cameras and a LiDAR in which one thing of the rig changed, and one of one colour.

    They have every eighth point: what the LiDAR alone sees is not at issue.
    """
    frame = dataclasses.replace(frame, points=frame.points[::SPARSER])
    known = {name: np.asarray(matrix, np.float64) for name, matrix in frame.calibration.items()}
    intrinsics, camera2lidar = known['camera_intrinsics'], known['camera2lidar']
    last = len(intrinsics) - 1
    focal, moved, cut = _focal(intrinsics, 0, FOCAL), camera2lidar.copy(), known['img_aug_matrix'].copy()
    moved[last] = _moved() @ moved[last]
    cut[last, :2, 3] += 3.0
    changes = {
        'the rig as it was': {},
        'another focal length': dict(
            camera_intrinsics=focal, lidar2image=focal @ np.linalg.inv(camera2lidar)
        ),
        'another place of a camera': dict(camera2lidar=moved, lidar2image=intrinsics @ np.linalg.inv(moved)),
        'another cut of a picture': dict(img_aug_matrix=cut),
        'points that were moved': dict(lidar_aug_matrix=_moved() @ known['lidar_aug_matrix']),
        'intrinsics alone': dict(camera_intrinsics=_focal(intrinsics, last, ALONE)),
        'lidar2image alone': dict(lidar2image=_focal(known['lidar2image'], 0, ALONE)),
    }
    for name, matrices in changes.items():
        calibration = {key: np.float32(value) for key, value in {**known, **matrices}.items()}
        yield dataclasses.replace(frame, calibration=calibration, name=name)
    plain = frame if limits is None else plain_sweep(frame, limits)
    yield dataclasses.replace(plain, images=np.zeros_like(frame.images), name='pictures of one colour')
