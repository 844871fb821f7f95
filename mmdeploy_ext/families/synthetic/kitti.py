"""Generated moments in the layout of KITTI: one picture with its camera, and one sweep."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pyquaternion import Quaternion

from mmdeploy_ext.base.config import test_dataset, without_augmentation
from mmdeploy_ext.families.synthetic.info_files import dataset_of_files
from mmdeploy_ext.families.synthetic.moments import generated_sweeps
from mmdeploy_ext.families.synthetic.scene import make_scene
from mmdeploy_ext.spec.preparation import FusionRule

SIZE_HW = 375, 1242
"""Height and width of most KITTI pictures, pixels."""
SHAPES = 20
"""Tried shapes of a picture."""
FOCAL, HEIGHT_M = (0.5, 0.7), (-0.3, 0.3)
"""Focal length over the picture's width, and place above the LiDAR."""
YAWS = 0.0, 0.9, np.pi
"""Yaw of each moment's camera in turn, radians: ahead, left, behind."""
OTHER_SIZES = (1.0, 1.0), (0.8, 1.1), (1.3, 0.6)
"""Factors of height and width of moments in turn."""


def generated_moments(
    rule: FusionRule, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, str]]:
    """Yield points, picture (h, w, 3), matrix (4, 4) from LiDAR to picture, and name."""
    for index, sweep in enumerate(generated_sweeps(rule.voxels, count)):
        rng = np.random.default_rng([index, 11])
        picture = make_picture(rng, rule, index)
        lidar2image = make_camera(rng, *picture.shape[:2], YAWS[index % len(YAWS)])
        yield sweep.points, picture, lidar2image, f'generated frame {index}'


def make_picture(rng: np.random.Generator, rule: FusionRule, index: int) -> np.ndarray:
    """Return a picture (h, w, 3) uint8, about the rule's size, at most KITTI's."""
    scale = min(1.0, min(rule.views.img_scale) / SIZE_HW[0]) if rule.views.img_scale else 1.0
    factors = OTHER_SIZES[index % len(OTHER_SIZES)]
    height, width = (round(scale * side * factor) for side, factor in zip(SIZE_HW, factors, strict=True))
    picture, _ = make_scene(rng, height, width, SHAPES)
    return picture


def make_camera(rng: np.random.Generator, height: int, width: int, yaw: float) -> np.ndarray:
    """Return the matrix (4, 4) float64 from the LiDAR to a picture."""
    ahead, down = np.array([np.cos(yaw), np.sin(yaw), 0.0]), np.array([0.0, 0.0, -1.0])
    facing = np.stack([np.cross(down, ahead), down, ahead])
    turn = Quaternion(axis=rng.normal(size=3), radians=rng.uniform(0.01, 0.05)).rotation_matrix
    lidar2camera, intrinsics = np.eye(4), np.eye(4)
    lidar2camera[:3, :3] = turn @ facing
    lidar2camera[:3, 3] = rng.uniform(-0.3, 0.3), rng.uniform(*HEIGHT_M), rng.uniform(-0.4, 0.1)
    focal = width * rng.uniform(*FOCAL)
    intrinsics[0, :4] = focal, 0.0, width * rng.uniform(0.45, 0.55), rng.uniform(-50, 50)
    intrinsics[1, 1:4] = focal * rng.uniform(0.98, 1.02), height * rng.uniform(0.4, 0.6), rng.uniform(-1, 1)
    intrinsics[2, 3] = rng.uniform(-0.01, 0.01)
    return intrinsics @ lidar2camera


def generated_dataset(folder: Path, cfg: Any, rule: FusionRule) -> dict[str, Any]:
    """Write two moments into `folder`, and return the config of their data set."""
    from mmdet3d.datasets import KittiDataset

    cfg = copy.deepcopy(cfg)
    without_augmentation(cfg)
    prefix = test_dataset(cfg).get('pts_prefix') or 'velodyne'
    pictures, sweeps = Path('training', 'image_2'), Path('training', prefix)
    for subfolder in (pictures, sweeps):
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
    infos = []
    for index, sweep in enumerate(generated_sweeps(rule.voxels, 2)):
        rng = np.random.default_rng([index, 13])
        picture = make_picture(rng, rule, index)
        image_path, points_path = pictures / f'{index:06d}.png', sweeps / f'{index:06d}.bin'
        if not cv2.imwrite(str(folder / image_path), picture):
            raise OSError(f'{folder / image_path}: cannot be written')
        points = rng.uniform(0, 1, (len(sweep.points), rule.load_dim)).astype(np.float32)
        points[:, :3] = sweep.points[:, :3]
        (folder / points_path).write_bytes(points.tobytes())
        rotation, intrinsics = np.eye(4), np.eye(4)
        rotation[:3, :3] = Quaternion(axis=[0.2, 1.0, 0.1], degrees=0.5).rotation_matrix
        height, width = picture.shape[:2]
        to_size = np.diag([width / 1242, height / 375, 1])  # of KITTI's pictures
        intrinsics[:3] = to_size @ [[700.0, 0, 600, 45], [0, 702, 180, -0.2], [0, 0, 1, 0.003]]
        camera = make_camera(rng, height, width, 0.0)
        infos.append(
            dict(
                image=dict(image_idx=index, image_path=str(image_path), image_shape=picture.shape[:2]),
                point_cloud=dict(num_features=rule.load_dim, velodyne_path=str(points_path)),
                calib=dict(
                    P2=intrinsics,
                    R0_rect=rotation,
                    Tr_velo_to_cam=np.linalg.inv(intrinsics @ rotation) @ camera,
                ),
                annos={},
            )
        )
    path = folder / 'infos.pkl'
    path.write_bytes(pickle.dumps(infos))
    files = dict(
        data_root=f'{folder}/',
        ann_file=str(path),
        split='training',
        pts_prefix=prefix,
        modality=test_dataset(cfg).get('modality') or dict(use_lidar=True, use_camera=True),
    )
    return dataset_of_files(cfg, KittiDataset, files, dict(type='KittiDataset'))
