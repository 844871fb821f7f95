"""The toy StreamPETR on disk: config, checkpoint, and pictures and infos without nuScenes' tables."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import cv2
import numpy as np
import torch

import toy_streampetr as toy
import toy_streampetr_export as exported
from mmdeploy_ext.spec.preparation import CAMERAS
from projects.configs.nuscenes_stream import image_augmentation, stream_data

SOURCE = (90, 160)
"""Height, width of the pictures."""
TIMES_S = {'a': (0.0, 0.5, 1.0), 'b': (20.0, 20.5)}
"""Scene -> times of its frames after `toy.T0`."""


def write_config(folder: Path, name: str = 'toy_stream', tail: str = '') -> str:
    """Write the toy's config, its data set at `folder`/set, and return the path; `tail` is appended."""
    image = image_augmentation((toy.HEIGHT, toy.WIDTH), (0.5, 0.6), source=SOURCE)
    data = stream_data(image, root=f'{folder}/set/', infos='toy', workers_per_gpu=0)
    text = (
        f'custom_imports = dict(imports=["mmdeploy_ext.families.mmdet3d_plugin"])\n'
        f'model = {toy.model_cfg()!r}\ndata = {data!r}\n{tail}\n'
    )
    path = folder / f'{name}.py'
    path.write_text(text)
    return str(path)


def write_checkpoint(path: Path, drop: str = '', **more: torch.Tensor) -> str:
    """Write the seeded toy's weights without the keys that begin with `drop`; `more` is added."""
    state = exported.model().state_dict()
    kept = {key: value for key, value in state.items() if not drop or not key.startswith(drop)}
    torch.save(dict(state_dict={**kept, **more}, meta={}), path)
    return str(path)


def write_model(folder: Path) -> Path:
    """Write the toy's config, checkpoint, data set and files of the deploy contract; return the folder."""
    write_config(folder)
    write_checkpoint(folder / 'toy.pth')
    write_set(folder)
    (folder / 'deploy').mkdir()
    exported.write(folder / 'deploy')
    return folder


def infos() -> list[dict]:
    """Return what an info file has of two scenes that drive straight on, as far as a test run needs it."""
    intrinsic = np.array([[100.0, 0, 80], [0, 100, 45], [0, 0, 1]])
    found = []
    for scene, times in TIMES_S.items():
        for index, time in enumerate(times):
            micros = int((toy.T0 + time) * 1e6)
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
    """Write pictures and infos for `write_config(folder)`; `change(infos)` spoils them first."""
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
