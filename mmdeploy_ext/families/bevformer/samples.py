"""Samples of the test loader as frames, drives for proofs, and the dump of a frame."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.families.bevformer.runtime import place_of
from mmdeploy_ext.families.parts.samples import camera_frame, check_given, dumped_cameras, only
from mmdeploy_ext.runtime.bev_motion import CAN_BUS, YAW_DEG, YAW_RAD, orientation_of
from mmdeploy_ext.runtime.frames import Frame

KEYS = ('img', 'img_metas')
"""Keys of a sample of the test loader."""
META_KEYS = ('lidar2img', 'can_bus', 'scene_token')
"""Keys of its metas."""
WAYS = (
    ('a way along y', 0.0, 1.5, None),
    ('a way along -x', -1.25, 0.0, None),
    ('a way along -y', 0.0, -2.0, None),
    ('a turn', 0.5, 0.25, 354.0),
    ('a turn over 0 degrees', -0.75, 0.5, 166.0),
    ('neither a way nor a turn', 0.0, 0.0, None),
)
"""Name of a frame, metres along x and y of the map since the frame before, and the heading in degrees, None
for that of the frame before. The second turn is of 188 degrees as numbers, and of 172 the other way."""
MEASURED = np.linspace(-1.1, 1.4, 9)
"""Acceleration, rotation rate and velocity of the first of these frames, no two alike and none 0: a record
without them, or with them in another order, is another one. Those of frame n are n times as large."""
DUMPED = ('img', 'lidar2img', 'can_bus')
"""Tensors of a dump from which a frame is read back."""


def frame(data: Mapping[str, Any]) -> Frame:
    """Return one collated sample of the test loader (batch 1, one augmentation) as a frame.

    BEVFormer's own samples have neither intrinsics nor a pose of the LiDAR: unit matrices stand for the
    former, and for the latter, unless the metas have `ego_pose`, a pose at the position of the car without a
    turn. Without `timestamp` the time is 0.

    DataError: a key is missing, there are several samples, or `can_bus` has another shape.
    """
    check_given(data, KEYS)
    images, meta = (only(data[key], key) for key in KEYS)
    if missing := [key for key in META_KEYS if not isinstance(meta, dict) or key not in meta]:
        raise DataError(f'img_metas has no {", ".join(missing)}; add it to the meta_keys of the last step')
    record = np.asarray(meta['can_bus'], np.float64)
    if record.shape != (CAN_BUS,):
        raise DataError(f'img_metas: can_bus has shape {record.shape}, expected ({CAN_BUS},)')
    return camera_frame(
        images,
        meta['lidar2img'],
        meta,
        ego_pose=np.asarray(meta.get('ego_pose', place_of(record)), np.float64),
        timestamp_s=float(meta.get('timestamp', 0.0)),
        scene_token=str(meta['scene_token']),
        can_bus=record,
    )


def given_record(frame: Frame) -> np.ndarray:
    """Return the record (18,) float64 of a frame as upstream's data set makes it, by no code of the runtime.

    It is the `can_bus` of the frame, in a new array; of a frame without one it is that of its pose, whose
    entries 3 to 6 are the real part of the orientation four times. Neither is checked.
    """
    if frame.can_bus is not None:
        return np.array(frame.can_bus, np.float64)
    from scipy.spatial.transform import Rotation  # takes half a second to import

    axes = np.array(frame.ego_pose, np.float64)[:3, :3]
    car = Rotation.from_matrix(np.stack([axes[:, 1], -axes[:, 0], axes[:, 2]], 1))
    heading = np.arctan2(axes[1, 1], axes[0, 1]) % (2 * np.pi)
    record = np.zeros(CAN_BUS)
    record[:3], record[3:7] = frame.ego_pose[:3, 3], np.cos(car.magnitude() / 2)
    record[16:] = heading, np.rad2deg(heading)
    return record


def can_bus_entry(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return what an info of BEVFormer has beside those of mmdet3d: `can_bus` (18,), drawn by a generator.

    A data set replaces the position, the orientation and the heading by those of the pose.
    """
    return dict(can_bus=rng.uniform(-1, 1, CAN_BUS))


def driven(frame: Frame) -> Iterator[Frame]:
    """Yield the next frames of a drive, whose car moves along an axis of the map exactly, turns, or stands.

    Pictures, rig and `ego_pose` stay those of `frame`: the record `can_bus` has the motion, which begins at
    `given_record` of the frame. A direction that is computed by a quotient fails where a way has no share
    along an axis, and a heading that crosses 0 degrees changes by almost a whole turn.
    """
    record = given_record(frame)
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


def dumped_frame(tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Frame:
    """Return a dumped frame, with time 0 and a pose without a turn, at the place of its record of motion.

    For `tensors`, of which `DUMPED` are read, and `manifest` see `dumped_cameras`.
    """
    frame = dumped_cameras(tensors, manifest, DUMPED, ego_pose=None, timestamp_s=0.0)
    return dataclasses.replace(frame, ego_pose=place_of(frame.can_bus))
