"""Two generated moments as files: pictures, sweeps, and infos."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from pyquaternion import Quaternion

from mmdeploy_ext.base.config import test_dataset, test_pipeline, without_augmentation
from mmdeploy_ext.base.source_code import is_users_class
from mmdeploy_ext.runtime.geometry import invert_pose
from mmdeploy_ext.spec.preparation import CAMERAS, MultiViewRule, VoxelRule
from mmdeploy_ext.upstream.models import catalogue
from mmdeploy_ext.upstream.models.building import data_class

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    Entries = Callable[[np.random.Generator], Mapping[str, Any]]
    """Draws the entries of an info that a family's data sets read."""

INFOS = 'infos.pkl'
MOMENTS = 2
"""Number of moments that are written."""
SUFFIXES = '.jpg', '.png'
"""Suffix of the pictures of each moment."""
COARSE = 16
"""Side of a patch of a picture, pixels."""
POINTS, POINTS_CLOSE = 1500, 50
"""Points of a sweep in and around the range, and within a metre of the LiDAR."""
RANGE = -54.0, -54.0, -5.0, 54.0, 54.0, 3.0
"""Range of points, metres, for a model without points."""
LOAD_DIM, LOAD_DIM_PAST = 6, 5
"""Columns of a sweep, and of a past one, that mmdet3d loads by default."""
START_US, BETWEEN_US, PAST_US = 1_533_151_607_548_047, 498_884, 50_123
"""Microseconds: start of the drive, between moments, between sweeps."""
TURN_RAD, WAY_M = 0.01, (0.3, -0.1, 0.02)
"""Turn and way of the car from one picture of a moment to the next."""


def generated_dataset(
    folder: Path,
    cfg: Any,
    default: Mapping[str, Any],
    views: MultiViewRule | None = None,
    voxels: VoxelRule | None = None,
    entries: Entries | None = None,
) -> dict[str, Any]:
    """Write two moments and return the config of a data set of them.

    - `folder`: existing; files of the same names are replaced.
    - `default`: `type` and settings of the data set in place of `data.test`'s, where `dataset_of_files` takes
      it.
    - `views`: rule of the cameras; None: no pictures.
    - `voxels`: rule of the points; None: no points.
    - `entries`: see `write_infos`.
    """
    from mmdet3d.datasets import NuScenesDataset

    cfg = copy.deepcopy(cfg)
    without_augmentation(cfg)
    infos = write_infos(folder, test_pipeline(cfg), views, voxels, entries)
    modality = dict(use_camera=views is not None, use_lidar=voxels is not None)
    files = dict(ann_file=str(infos), data_root=f'{folder}/')
    return dataset_of_files(cfg, NuScenesDataset, files, dict(default, modality=modality))


def dataset_of_files(
    cfg: Any, base: type, files: Mapping[str, Any], default: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the config of a data set of generated files, with the config's test pipeline.

    - `base`: class of mmdet3d for files of this layout.
    - `files`: settings with the paths.
    - `default`: `type` and settings of a data set that reads the files.
    """
    from mmdet3d.datasets import Custom3DDataset

    files = dict(files, pipeline=test_pipeline(cfg))
    test_data = test_dataset(cfg)
    kind = data_class(test_data.get('type'), 'DATASETS')
    if kind is not None:
        parents = [parent for parent in kind.__mro__ if parent.__module__.startswith(('mmdet.', 'mmdet3d.'))]
        states_own_layout = is_users_class(kind) and all(parent is Custom3DDataset for parent in parents)
        if issubclass(kind, base) or states_own_layout:
            return dict(test_data, **files)
    catalogue.register([default['type']])
    return dict(default, **files)


def write_infos(
    folder: Path,
    steps: Sequence[Mapping[str, Any]],
    views: MultiViewRule | None = None,
    voxels: VoxelRule | None = None,
    entries: Entries | None = None,
) -> Path:
    """Write two moments of one scene and return the path of their infos.

    Axes, units and rotations as in mmdet3d's infos of nuScenes: quaternions w x y z of ego, LiDAR and of the
    ego at each camera's time, matrices (3, 3) from cameras and past sweeps to the LiDAR.
    """
    moments = []
    for moment in range(MOMENTS):
        rng = np.random.default_rng([moment, 7])
        time_us = START_US + moment * BETWEEN_US
        info = dict(
            token=f'generated moment {moment}',
            scene_token='generated scene',
            prev='',
            next='',
            frame_idx=moment,
            timestamp=time_us,
            lidar_path='',
            sweeps=[],
            cams={},
            **_pose(rng, 'lidar2ego', 1.0),
            **_pose(rng, 'ego2global', 300.0),
        )
        if views is not None:
            info['cams'] = _cameras(folder, moment, views, time_us, rng)
            _add_ego_poses(info)
        if voxels is not None or any(step.get('type') == 'LoadPointsFromFile' for step in steps):
            info |= _sweeps(folder, moment, steps, voxels, time_us, rng)
        moments.append(info | dict(entries(rng) if entries else {}))
    path = folder / INFOS
    path.write_bytes(pickle.dumps(dict(infos=moments, metadata=dict(version='generated'))))
    return path


def _turn(rng: np.random.Generator, limit_rad: float = np.pi) -> Quaternion:
    return Quaternion(axis=[*rng.uniform(-0.1, 0.1, 2), 1.0], radians=rng.uniform(-limit_rad, limit_rad))


def _pose(rng: np.random.Generator, name: str, limit_m: float) -> dict[str, list[float]]:
    translation = [*rng.uniform(0.5 * limit_m, limit_m, 2), rng.uniform(0.5, 2.0)]
    return {f'{name}_rotation': list(_turn(rng)), f'{name}_translation': translation}


def _cameras(
    folder: Path, moment: int, views: MultiViewRule, time_us: int, rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
    height, width = views.source
    names = CAMERAS if views.num_cameras == len(CAMERAS) else range(views.num_cameras)
    cameras = {}
    for index, name in enumerate(names):
        path = folder / f'{moment}_{index}{SUFFIXES[moment]}'
        patches = rng.integers(0, 256, (height // COARSE + 2, width // COARSE + 2, 3), np.uint8)
        picture = cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)
        if not cv2.imwrite(str(path), picture):
            raise OSError(f'{path}: cannot be written')
        yaw = np.pi / 2 - 2 * np.pi * index / views.num_cameras
        ahead, down = np.array([np.cos(yaw), np.sin(yaw), 0.0]), np.array([0.0, 0.0, -1.0])
        facing = np.stack([np.cross(down, ahead), down, ahead], axis=1)
        focal = rng.uniform(0.6, 0.9) * width
        cameras[str(name)] = dict(
            data_path=str(path),
            timestamp=time_us + int(rng.integers(-40_000, 40_000)),
            cam_intrinsic=np.array(
                [
                    [focal, 0.0, rng.uniform(0.45, 0.55) * width],
                    [0.0, 1.01 * focal, rng.uniform(0.45, 0.55) * height],
                    [0.0, 0.0, 1.0],
                ]
            ),
            sensor2lidar_rotation=_turn(rng, 0.1).rotation_matrix @ facing,
            sensor2lidar_translation=ahead + rng.uniform(-0.5, 0.5, 3),
        )
    return cameras


def _add_ego_poses(info: dict[str, Any]) -> None:
    def pose(name: str) -> np.ndarray:
        matrix = Quaternion(info[f'{name}_rotation']).transformation_matrix
        matrix[:3, 3] = info[f'{name}_translation']
        return matrix

    lidar2global = pose('ego2global') @ pose('lidar2ego')
    for index, camera in enumerate(info['cams'].values()):
        camera2lidar = np.eye(4)
        camera2lidar[:3, :3] = camera['sensor2lidar_rotation']
        camera2lidar[:3, 3] = camera['sensor2lidar_translation']
        way = Quaternion(axis=[0, 0, 1], radians=TURN_RAD * index).transformation_matrix
        way[:3, 3] = np.array(WAY_M) * index
        ego = pose('ego2global') @ way
        sensor = invert_pose(ego) @ lidar2global @ camera2lidar
        for name, matrix in (('sensor2ego', sensor), ('ego2global', ego)):
            rotation = Quaternion(matrix=matrix[:3, :3], rtol=1e-4, atol=1e-4)
            camera[f'{name}_rotation'] = list(rotation)
            camera[f'{name}_translation'] = matrix[:3, 3].tolist()


def _sweeps(
    folder: Path,
    moment: int,
    steps: Sequence[Mapping[str, Any]],
    voxels: VoxelRule | None,
    time_us: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    loaders = {step.get('type'): step for step in steps}
    loader = loaders.get('LoadPointsFromFile')
    width = voxels.in_channels if loader is None else int(loader.get('load_dim', LOAD_DIM))
    limits = RANGE if voxels is None else voxels.point_cloud_range
    sweep_path, past = folder / f'{moment}.bin', loaders.get('LoadPointsFromMultiSweeps')
    sweep_path.write_bytes(_points(limits, width, rng).tobytes())
    if past is None or moment > 0:
        return dict(lidar_path=str(sweep_path), sweeps=[])
    sweeps, num_sweeps = [], int(past.get('sweeps_num', 10))
    if past.get('test_mode', False):  # the nearest ones are taken
        num_sweeps += 1
    for age in range(1, num_sweeps + 1):
        path = folder / f'{moment}_{age}_before.bin'
        path.write_bytes(_points(limits, int(past.get('load_dim', LOAD_DIM_PAST)), rng).tobytes())
        sweeps.append(
            dict(
                data_path=str(path),
                timestamp=time_us - age * PAST_US,
                sensor2lidar_rotation=_turn(rng, 0.1).rotation_matrix,
                sensor2lidar_translation=rng.uniform(-1.0, 1.0, 3) - np.array([0.0, 0.5 * age, 0.0]),
            )
        )
    return dict(lidar_path=str(sweep_path), sweeps=sweeps)


def _points(limits: Sequence[float], width: int, rng: np.random.Generator) -> np.ndarray:
    low, high = np.array(limits).reshape(2, 3)
    middle, reach = (low + high) / 2, (high - low) / 2
    around = middle + 1.1 * reach * rng.uniform(-1, 1, (POINTS, 3))
    close = np.concatenate([rng.uniform(-1, 1, (POINTS_CLOSE, 2)), rng.uniform(-2, 1, (POINTS_CLOSE, 1))], 1)
    points = np.zeros((POINTS + POINTS_CLOSE, max(width, 5)), np.float32)
    points[:, :3] = rng.permutation(np.concatenate([around, close]))
    points[:, 3] = rng.integers(0, 256, len(points))
    points[:, 4:] = rng.integers(0, 32, (len(points), points.shape[1] - 4))
    return np.ascontiguousarray(points[:, :width])
