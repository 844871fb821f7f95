"""The sensors: six cameras and a LiDAR, mounted as on nuScenes' cars, and poses as 4x4 matrices.

Camera frame: x right, y down, z ahead. LiDAR frame: x right, y ahead, z up. Ego frame: x ahead, y left, z up,
origin on the ground below the rear axle.
"""

import math
from dataclasses import dataclass

import numpy as np
from pyquaternion import Quaternion

_CAMERAS = {
    'CAM_FRONT': (1.70, 0.0, 1.51, 0, 70, 35),
    'CAM_FRONT_RIGHT': (1.55, -0.49, 1.50, -55, 70, 27),
    'CAM_FRONT_LEFT': (1.52, 0.49, 1.51, 55, 70, 43),
    'CAM_BACK': (0.03, 0.0, 1.58, 180, 110, 10),
    'CAM_BACK_LEFT': (1.04, 0.48, 1.59, 110, 70, 3),
    'CAM_BACK_RIGHT': (1.01, -0.48, 1.56, -110, 70, 20),
}
"""x, y, z in the ego frame, m; yaw and horizontal field of view, degrees; how long before the LiDAR, ms."""
CAMERAS = tuple(_CAMERAS)
"""In the order of mmdet3d's info files."""
LIDAR = 'LIDAR_TOP'
CAMERA_LAG_US = {name: row[5] * 1000 for name, row in _CAMERAS.items()}
_CAMERA_AXES = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float)
"""Columns: the axes of an unturned camera in the ego frame."""


@dataclass(frozen=True)
class Sensor:
    """A calibrated sensor: `to_ego` (4, 4) and, for cameras, `intrinsic` (3, 3) in px."""

    channel: str
    to_ego: np.ndarray
    intrinsic: np.ndarray | None = None


def pose_matrix(xy: np.ndarray, yaw: float, z: float = 0.0) -> np.ndarray:
    """Give the (4, 4) matrix of a frame that stands level at (x, y, z) and is turned by `yaw` radians."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin, 0, xy[0]], [sin, cos, 0, xy[1]], [0, 0, 1, z], [0, 0, 0, 1]], float)


def _tilt(rng: np.random.Generator, degrees: float) -> np.ndarray:
    axis = rng.normal(size=3)
    return Quaternion(axis=axis, degrees=float(rng.uniform(0, degrees))).rotation_matrix


def _mounted(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Give the matrix that the table's own quaternion stands for, to the last bit of its rounding."""
    matrix = Quaternion(matrix=rotation, rtol=1e-6, atol=1e-6).normalised.transformation_matrix
    matrix[:3, 3] = translation
    return matrix


def make_rig(rng: np.random.Generator, width: int, height: int) -> dict[str, Sensor]:
    """Calibrate a car: the usual mounting, each sensor within half a degree and a centimetre or so of it.

    Width and height are those of the pictures, px.
    """
    rig = {}
    for channel, (x, y, z, yaw, view, _) in _CAMERAS.items():
        turn = Quaternion(axis=[0, 0, 1], degrees=yaw).rotation_matrix
        rotation = turn @ _tilt(rng, 0.6) @ _CAMERA_AXES
        focal = width / 2 / math.tan(math.radians(view) / 2) * rng.uniform(0.99, 1.01)
        centre = (width * rng.uniform(0.495, 0.515), height * rng.uniform(0.535, 0.555))
        intrinsic = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
        translation = np.array([x, y, z]) + rng.uniform(-0.015, 0.015, 3)
        rig[channel] = Sensor(channel, _mounted(rotation, translation), intrinsic)
    turn = Quaternion(axis=[0, 0, 1], degrees=-90).rotation_matrix
    translation = np.array([0.94, 0, 1.84]) + rng.uniform(-0.015, 0.015, 3)
    rig[LIDAR] = Sensor(LIDAR, _mounted(turn @ _tilt(rng, 1.2), translation))
    return rig
