"""Generated moments: sweeps, frames of cameras and a LiDAR, rigs in which one thing changed.

Glossary: N cameras, P points, V values per point.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np
from pyquaternion import Quaternion

from mmdeploy_ext.families.synthetic.drive import synthetic_drive
from mmdeploy_ext.runtime.bev_motion import YAW_DEG, YAW_RAD, orientation_of
from mmdeploy_ext.runtime.frames import Frame, FusedFrame, Sweep, of_rays

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mmdeploy_ext.spec.preparation import FusionRule, VoxelRule

PICTURE_WH = 32, 32
"""Width and height, pixels, of unused pictures."""
FOCAL = 1.04
"""Factor of a focal length."""
ROLL_RAD = np.pi / 3
"""Angle about the optical axis of a camera with intrinsics that turn the picture back."""
MOVED_M, TURNED = (0.3, -0.2, 0.1), Quaternion(axis=[0.1, 0.2, 1.0], degrees=2.0)
"""Translation and rotation of a moved camera or sweep."""
WAYS = (
    ('a way along y', 0.0, 1.5, None),
    ('a way along -x', -1.25, 0.0, None),
    ('a way along -y', 0.0, -2.0, None),
    ('a turn', 0.5, 0.25, 354.0),
    ('a turn over 0 degrees', -0.75, 0.5, 166.0),
    ('neither a way nor a turn', 0.0, 0.0, None),
)
"""Name of a frame, metres along the map's x and y since the frame before, heading in degrees or None."""
MEASURED = np.linspace(-1.1, 1.4, 9)
"""Acceleration, rotation rate and velocity of the first frame: distinct and not 0, to tell them apart."""
HIDDEN_POINTS = 500
"""Hidden points per camera."""
STEP_S = 0.4
"""Seconds between frames of a drive."""
TURN_RAD, WAY_M = 0.5, 1.5
"""Turn to the left, and way along the LiDAR's y, between frames of `special_drive`."""


def generated_sweeps(rule: VoxelRule, count: int) -> Iterator[Sweep]:
    """Yield `count` sweeps of the generated world, each of another scene."""
    from mmdeploy_ext.families.synthetic.nuscenes_sensors import LIDAR, make_rig, measure_sweep
    from mmdeploy_ext.families.synthetic.nuscenes_world import make_world

    for index in range(count):
        rng = np.random.default_rng(index)
        world, rig = make_world(rng, 1, 0.0), make_rig(rng, *PICTURE_WH)
        things = [world.things[number] for number in np.flatnonzero(world.active[0])]
        measured, _ = measure_sweep(rig[LIDAR], world, things, 0.0, rng)
        points = np.zeros((len(measured), rule.in_channels), np.float32)
        width = min(points.shape[1], measured.shape[1])
        points[:, :width] = measured[:, :width]
        yield Sweep(points, f'generated sweep {index}')


def plain_sweep(sweep: Sweep, limits: Sequence[float]) -> Sweep:
    """Return a sweep of the furthest point in x and y within `limits` (low, then high x, y, z, m)."""
    low, high = np.float32(limits[:3]), np.float32(limits[3:])
    inside = ((sweep.points[:, :3] > low) & (sweep.points[:, :3] < high)).all(1)
    distances = np.where(inside, np.linalg.norm(sweep.points[:, :2], axis=1), -1)
    return dataclasses.replace(sweep, points=sweep.points[[distances.argmax()]], name='one point')


def _moved() -> np.ndarray:
    matrix = TURNED.transformation_matrix
    matrix[:3, 3] = MOVED_M
    return matrix


def _focal(matrices: np.ndarray, camera: int, factor: float) -> np.ndarray:
    changed = matrices.copy()
    changed[camera, [0, 1], [0, 1]] *= factor
    return changed


def changed_drive(frame: Frame) -> Iterator[Frame]:
    """Yield frames of one drive: unchanged, each with one more change of its rig, one of one colour."""
    extrinsics = np.linalg.solve(frame.intrinsics, frame.lidar2img)
    last = len(frame.images) - 1
    focal = _focal(frame.intrinsics, 0, FOCAL)
    moved = extrinsics.copy()
    moved[last] = moved[last] @ _moved()
    # These intrinsics turn the picture of one camera about its optical axis. With the camera turned the other
    # way, the same pixels see the same points: `lidar2img` stays as it is, and both matrices still differ by
    # a rigid transform, however far the intrinsics are from what they were.
    rolled = focal.copy()
    rolled[last] = rolled[last] @ Quaternion(axis=[0, 0, 1], radians=ROLL_RAD).transformation_matrix
    changes = {
        'the rig as it was': {},
        'another focal length': dict(intrinsics=focal, lidar2img=focal @ extrinsics),
        'another place of a camera': dict(lidar2img=focal @ moved),
        'intrinsics alone': dict(intrinsics=rolled),
        'pictures of one colour': dict(images=np.zeros_like(frame.images)),
    }
    for name, values in changes.items():
        frame = dataclasses.replace(
            frame, **values, name=name, timestamp_s=frame.timestamp_s + STEP_S, scene_token='special frames'
        )
        yield frame


def turned_way(turn_rad: float, way_m: float) -> np.ndarray:
    """Return the pose (4, 4) of a car relative to its last one: along y, turned to the left."""
    pose, sine, cosine = np.eye(4), np.sin(turn_rad), np.cos(turn_rad)
    pose[:2, :2] = [[cosine, -sine], [sine, cosine]]
    pose[1, 3] = way_m
    return pose


def special_drive(frame: Frame, gaps_s: Sequence[float] = (STEP_S,), lag_s: float = 0.0) -> Iterator[Frame]:
    """Yield one drive: `changed_drive`, then frames of a car that turns, `gaps_s` apart.

    `lag_s` is the time between a frame's first and last picture; the first camera changes, and cameras swap
    pictures.
    """
    frames = list(changed_drive(dataclasses.replace(frame, camera_times_s=None)))
    yield from frames
    turn, last, time_s = turned_way(TURN_RAD, WAY_M), frames[-1], frames[-1].timestamp_s
    pose = np.array(frame.ego_pose, np.float64)
    for number, gap in enumerate(gaps_s):
        pose, time_s = pose @ turn, time_s + gap
        changes: dict[str, np.ndarray] = dict(images=frame.images)
        if lag_s:
            lags = np.linspace(0, min(lag_s, gap / 4), len(frame.images))
            changes = dict(
                images=np.roll(frame.images, number + 1, axis=0),
                camera_times_s=time_s - np.roll(lags, number),
            )
        yield dataclasses.replace(
            last,
            **changes,
            name=f'{gap} s later, after a turn',
            ego_pose=pose,
            ego_pose_inv=None,
            timestamp_s=time_s,
        )


def record_drive(frame: Frame, record: np.ndarray) -> Iterator[Frame]:
    """Yield the next frames of a drive along an axis of the map, turning, or standing."""
    for step, (name, x, y, heading) in enumerate(WAYS, start=1):
        record = record.copy()
        record[:2] += x, y
        record[YAW_DEG] = record[YAW_DEG] % 360 if heading is None else heading
        record[YAW_RAD] = np.radians(record[YAW_DEG])
        half = record[YAW_RAD] / 2
        quaternion = np.array([np.cos(half), 0, 0, np.sin(half)])
        record[3:7] = quaternion if orientation_of(record) == 'wxyz' else quaternion[0]
        record[7:16] = step * MEASURED
        yield dataclasses.replace(
            frame, name=name, can_bus=record, timestamp_s=frame.timestamp_s + 0.5 * step
        )


def plain_moment(frame: FusedFrame, limits: Sequence[float] | None) -> FusedFrame:
    moment = frame if limits is None else plain_sweep(frame, limits)
    images = None if frame.images is None else np.zeros_like(frame.images)
    return dataclasses.replace(moment, images=images, name='nothing to see')


def fused_frames(rule: FusionRule, count: int) -> Iterator[FusedFrame]:
    """Yield `count` frames with sweeps of a generated world."""
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
