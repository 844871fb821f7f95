"""tensorrt_bevformer's record of the car's motion, and what it keeps of it between frames, in numpy.

All of it is float32, as in the node. Differs from the node in: a new scene begins anew, which in the version
that was read only the first frame after the start does (its README names a topic for it).

Source: autoware_universe, autoware_tensorrt_bevformer, src/{bevformer_node.cpp@0d02fce,
bevformer_data_manager.cpp@df68ec3} (formulas, no code).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mmdeploy_ext.families.parts.runtime.bev_motion import CAN_BUS, YAW_DEG, YAW_RAD

POSITION, ROTATION, VELOCITY, RATES, ACCELERATION = (
    slice(0, 3),
    slice(3, 7),
    slice(7, 10),
    slice(10, 13),
    slice(13, 16),
)
"""Entries of the node's record; a model's, see `bev_motion.motion_since`, has the acceleration first and the
velocity last."""
TRAINED_ORDER = (*range(7), 13, 14, 15, 10, 11, 12, 7, 8, 9, YAW_RAD, YAW_DEG)
"""Entry of a model's record -> where the node's has it; also the other way round."""


@dataclasses.dataclass(frozen=True)
class Motion:
    """What the node gets of the car: its pose in the map and the kinematic state.

    Attributes:
        position: (3,) m.
        rotation: (4,) quaternion w, x, y, z.
        velocity: (3,) m/s.
        rates: (3,) rad/s.
        acceleration: (3,) m/s^2.
    """

    position: np.ndarray
    rotation: np.ndarray
    velocity: np.ndarray
    rates: np.ndarray
    acceleration: np.ndarray


def absolute(motion: Motion) -> np.ndarray:
    """Return the node's record (18,) float32 before it takes the last frame off."""
    record = np.zeros(CAN_BUS, np.float32)
    record[POSITION], record[ROTATION] = motion.position, motion.rotation
    record[VELOCITY], record[RATES], record[ACCELERATION] = motion.velocity, motion.rates, motion.acceleration
    w, x, y, z = record[ROTATION]
    two = np.float32(2)
    yaw = np.arctan2(two * (w * z + x * y), np.float32(1) - two * (y * y + z * z))
    degrees = np.float32(float(yaw) / math.pi * 180)
    degrees += np.float32(360) if degrees < 0 else np.float32(0)
    record[YAW_RAD] = float(degrees / np.float32(180)) * math.pi
    record[YAW_DEG] = degrees
    return record


def relative(record: np.ndarray, last: np.ndarray | None) -> np.ndarray:
    """Return the record (18,) that is fed: position and heading in degrees since the last frame.

    Args:
        record: position and heading of this frame, as `absolute` returns them.
        last: record of the last frame; None at the first frame, whose changes are 0.
    """
    changed = record.copy()
    for entries in (POSITION, YAW_DEG):
        changed[entries] = 0 if last is None else record[entries] - last[entries]
    return changed


def motion_of(record: np.ndarray, orientation: str) -> Motion:
    """Return what the node would get of a car with a model's record (18,).

    `orientation` is what entries 3 to 6 are: 'wxyz', a quaternion, or 'wwww', its real part four times.
    """
    rotation = record[3:7] if orientation == 'wxyz' else quaternion_of(record[3], record[YAW_RAD])
    return Motion(record[:3], rotation, record[13:16], record[10:13], record[7:10])


def trained_record(record: np.ndarray, orientation: str) -> np.ndarray:
    """Return the node's record (18,) as a model's, float64; `orientation` is that of `motion_of`."""
    trained = record[list(TRAINED_ORDER)].astype(np.float64)
    if orientation == 'wwww':
        trained[3:7] = record[3]
    return trained


def quaternion_of(w: float, heading: float) -> np.ndarray:
    """Return a unit quaternion (4,) with a real part w whose x axis has a heading, rad.

    It is turned about z last; before, as far as w asks for it, about x, or as far about y.
    """
    cosine, sine = math.cos(heading / 2), math.sin(heading / 2)
    if cosine * w < 0:
        cosine, sine = -cosine, -sine
    if abs(w) <= abs(cosine):
        about_x = w / cosine if cosine else 1.0
        inner = (about_x, math.sqrt(max(1 - about_x**2, 0.0)), 0.0, 0.0)
    else:
        sign = math.copysign(1, w)
        share = min((w - cosine) / (sign * abs(sine) - cosine), 1.0)  # squared sine of half of both angles
        x, rest = math.sqrt(share), math.sqrt(1 - share)
        y = x * sign * math.copysign(1, sine)
        inner = (rest * rest, rest * x, y * rest, -y * x)
    return np.array(
        [
            cosine * inner[0] - sine * inner[3],
            cosine * inner[1] - sine * inner[2],
            cosine * inner[2] + sine * inner[1],
            cosine * inner[3] + sine * inner[0],
        ]
    )
