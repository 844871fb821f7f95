"""Frames of six cameras on disk: pictures, infos without nuScenes' tables, and the rule that reads them."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mmdeploy_ext.spec.preparation import CAMERAS, MultiViewRule

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = (90, 160)
"""Height, width of the pictures."""
RULE = MultiViewRule(
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
    to_rgb=True,
    source=SOURCE,
    scale=0.6,
    resized=(54, 96),
    crop=(22, 0),
    size=(32, 96),
    size_divisor=32,
)
T0 = 1533151607.0
TIMES_S = {'a': (0.0, 0.5, 1.0), 'b': (20.0, 20.5)}
"""Scene -> times of its frames after `T0`."""


def infos() -> list[dict]:
    """Return what an info file has of two scenes that drive straight on, as far as a test run needs it."""
    intrinsic = np.array([[100.0, 0, 80], [0, 100, 45], [0, 0, 1]])
    found = []
    for scene, times in TIMES_S.items():
        for index, time in enumerate(times):
            micros = int((T0 + time) * 1e6)
            cams = {
                name: dict(
                    data_path=f'{name}.png',
                    timestamp=micros,
                    cam_intrinsic=intrinsic.copy(),
                    sensor2lidar_rotation=_camera_to_lidar(number).copy(),
                    sensor2lidar_translation=np.array([0.0, 0.0, -0.3]),
                )
                for number, name in enumerate(CAMERAS)
            }
            found.append(
                dict(
                    token=f'{scene}{index}',
                    prev='',
                    next='',
                    scene_token=scene,
                    frame_idx=index,
                    timestamp=micros,
                    lidar_path='none.bin',
                    sweeps=[],
                    lidar2ego_rotation=[1.0, 0.0, 0.0, 0.0],
                    lidar2ego_translation=[0.9, 0.0, 1.8],
                    ego2global_rotation=[1.0, 0.0, 0.0, 0.0],
                    ego2global_translation=[600.0 + 2.0 * index, 1600.0, 0.0],
                    cams=cams,
                )
            )
    return found


def write_set(folder: Path, change=None) -> None:
    """Write pictures and infos in folder/set; `change(infos)` spoils them first."""
    root = folder / 'set'
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    content = copy.deepcopy(infos())
    for name in CAMERAS:
        cv2.imwrite(str(root / f'{name}.png'), rng.integers(0, 256, (*SOURCE, 3), np.uint8))
    for info in content:
        for camera in info['cams'].values():
            camera['data_path'] = str(root / camera['data_path'])
    if change is not None:
        change(content)
    (root / 'toy_val.pkl').write_bytes(pickle.dumps(dict(infos=content, metadata=dict(version='toy'))))


def _camera_to_lidar(number: int) -> np.ndarray:
    """Return the rotation of one of six cameras, 60 degrees apart; x right, y down, z forward."""
    yaw = np.pi / 2 - np.pi / 3 * number
    forward = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    down = np.array([0.0, 0.0, -1.0])
    return np.stack([np.cross(down, forward), down, forward], axis=1)
