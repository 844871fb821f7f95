"""The record of the car's motion in Autoware's node for BEVFormer, tensorrt_bevformer, in numpy.

A record is the 18 numbers of BEVFormer's input `can_bus`, of a car in the map:

| entries | in the node | in a model, see `bev_motion.motion_since` |
|---|---|---|
| 0 to 2 | position x, y, z, m | the same |
| 3 to 6 | orientation, quaternion w, x, y, z | the same, or w four times |
| 7 to 9 | velocity, m/s | acceleration, m/s^2 |
| 10 to 12 | rotation rate, rad/s | the same |
| 13 to 15 | acceleration, m/s^2 | velocity, m/s |
| 16, 17 | heading about the map's z, 0 to a whole turn, rad and degrees | the same |

Only positions and the heading in degrees are fed as differences to the frame before; the map's axes stay.

`absolute` and `relative` compute in float32, as the node does; `trained_record` and `quaternion_of`, which it
does not have, give float64. Differs from the node in: the caller passes no last record at the first frame of
each scene. The version of the node that was read does so only at the first frame after its start, though its
README names a topic for new scenes.

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
"""Entries of the node's record."""
TRAINED_ORDER = (*range(7), 13, 14, 15, 10, 11, 12, 7, 8, 9, YAW_RAD, YAW_DEG)
"""Entry of a model's record -> entry of the node's record with that number; it is its own inverse."""

ROUNDING = 3e-7
"""By how much the real part of a car on flat ground may exceed the cosine of half its heading: the record may
be of float32, with steps of 6e-8 of the real part and 5e-7 of the heading."""


@dataclasses.dataclass(frozen=True)
class Motion:
    """What the node gets of the car: its pose in the map and Autoware's message KinematicState.

    The node passes velocity, rates and acceleration on as the message has them, and so does this module: by
    Autoware's convention they are in the frame of the car. Arrays are of any floating-point type.

    Attributes:
        position: (3,) of the car in the map, m.
        rotation: (4,) unit quaternion w, x, y, z from the frame of the car to the map.
        velocity: (3,) m/s.
        rates: (3,) angular velocity, rad/s.
        acceleration: (3,) m/s^2.
    """

    position: np.ndarray
    rotation: np.ndarray
    velocity: np.ndarray
    rates: np.ndarray
    acceleration: np.ndarray


def absolute(motion: Motion) -> np.ndarray:
    """Return the node's record (18,) float32 of the motion in a frame, before the frame before is subtracted.

    The heading is from 0 to a whole turn.
    """
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
    """Return the record (18,) that is fed: position and heading in degrees are differences to the last frame.

    The other entries, the heading in rad among them, stay. The difference of headings is not wrapped, neither
    here nor in the node or upstream's data set: from 359 to 1 degrees it is -358, as the model was trained.

    Args:
        record: record (18,) of this frame, as `absolute` returns it.
        last: that of the frame before, absolute as well, of which only position and heading in degrees are
            read; None at the first frame of a scene, whose differences are 0.
    """
    changed = record.copy()
    for entries in (POSITION, YAW_DEG):
        changed[entries] = 0 if last is None else record[entries] - last[entries]
    return changed


def motion_of(record: np.ndarray, orientation: str) -> Motion:
    """Return what the node would get of a car with a model's record (18,), whose position is absolute.

    `orientation` is what entries 3 to 6 are, a key of `bev_motion.ORIENTATIONS`: 'wxyz', a quaternion, or
    'wwww', its real part four times, as upstream's data set makes them by mistake and models are trained.
    Then the quaternion is one with this real part and the heading of the record, see `quaternion_of`.
    """
    rotation = record[3:7] if orientation == 'wxyz' else quaternion_of(record[3], record[YAW_RAD])
    return Motion(record[:3], rotation, record[13:16], record[10:13], record[7:10])


def trained_record(record: np.ndarray, orientation: str) -> np.ndarray:
    """Return a node's record (18,), of `absolute` or `relative`, in the order of a model's, float64.

    `orientation` is that of `motion_of`.
    """
    trained = record[list(TRAINED_ORDER)].astype(np.float64)
    if orientation == 'wwww':
        trained[3:7] = record[3]
    return trained


def quaternion_of(w: float, heading: float) -> np.ndarray:
    """Return a unit quaternion w, x, y, z (4,) float64 with a given real part and a given heading.

    It is a turn about z by the heading, before which the car is tilted so that the real part is right: about
    x alone if that suffices, otherwise about x and then by the same angle, of either sign, about y. Of all
    such tilts it is not the smallest.

    Args:
        w: the real part, -1..1, of an orientation with this heading that is tilted by less than a right
            angle; `ROUNDING` may have been added to it.
        heading: heading, rad, of any number of turns: that of the turned x axis about z.
    """
    cosine, sine = math.cos(heading / 2), math.sin(heading / 2)
    if cosine * w < 0:
        cosine, sine = -cosine, -sine
    if abs(w) <= abs(cosine) + ROUNDING:
        about_x = min(w / cosine, 1.0) if abs(cosine) > ROUNDING else 1.0
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
