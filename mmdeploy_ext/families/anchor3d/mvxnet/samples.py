"""Frames of one picture and one sweep: the rule of a config, samples of KITTI, dumps and generated ones.

Glossary: P points, D values of one, H, W picture of the network, h, w picture as taken.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pyquaternion import Quaternion

from mmdeploy_ext.core.config import refused_by_name, test_dataset, test_pipeline, without_augmentation
from mmdeploy_ext.core.errors import ConfigError, DataError
from mmdeploy_ext.families.anchor3d.mvxnet.runtime import CAMERA, frame_of_rig
from mmdeploy_ext.families.parts import proof_samples
from mmdeploy_ext.families.parts.samples import check_dumped, check_given, only, picture_files
from mmdeploy_ext.families.parts.voxel_grid import rule_of_layer
from mmdeploy_ext.preprocess.fusion import FusionRule
from mmdeploy_ext.preprocess.pipeline_rule import rule_from_pipeline
from mmdeploy_ext.preprocess.point_files import point_rule
from mmdeploy_ext.runtime.frames import FusedFrame
from mmdeploy_ext.runtime.infos import read_frames
from mmdeploy_ext.synthetic.info_files import dataset_of_files
from mmdeploy_ext.synthetic.scene import make_scene

OF_POINTS = ('LoadPointsFromFile', 'GlobalRotScaleTrans', 'PointsRangeFilter')
"""Steps of a test pipeline that do nothing to the picture."""
NEUTRAL_OF_POINTS = dict(rot_range=(0, 0), scale_ratio_range=(1, 1), translation_std=(0, 0, 0))
"""Options of GlobalRotScaleTrans that leave the points as they are."""
SIZE_HW = 375, 1242
"""Height and width of most pictures of KITTI, pixels."""
SHAPES = 20
"""Number of shapes that are tried in a generated picture."""
FOCAL, HEIGHT_M = (0.5, 0.7), (-0.3, 0.3)
"""Focal length of a generated camera over the width of its picture, and its place above the LiDAR."""
YAWS = 0.0, 0.9, np.pi
"""Yaw of the camera of each generated frame, one after the other, radians: ahead, to the left, behind."""
CROWD = 64
"""Number of points that are added to a single voxel of each generated frame."""
OTHER_SIZES = (1.0, 1.0), (0.8, 1.1), (1.3, 0.6)
"""Factors of the height and the width of the pictures of generated frames, one after the other."""


def fusion_rule(cfg: Any, width: int) -> FusionRule:
    """Return the rule by which picture and points become the inputs; points have `width` values.

    ConfigError: a step of the test pipeline that the rule cannot express, with the name of the config.
    """
    points = point_rule(cfg, width)
    if points.past is not None:
        raise ConfigError(f'{cfg.filename}: LoadPointsFromMultiSweeps: past sweeps are not exported')
    voxels = rule_of_layer(cfg.model.pts_voxel_layer, width, 'zyx')
    steps = test_pipeline(cfg)
    with refused_by_name(cfg):
        picture = rule_from_pipeline(_picture_steps(steps))
    return FusionRule(picture, voxels, load_dim=points.load_dim, use_dim=points.use_dim)


def _picture_steps(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the steps for the picture, under the names that they have in mmdet.

    ConfigError: a step moves points.
    """
    picture_steps = []
    for step in steps:
        if step['type'] == 'GlobalRotScaleTrans':
            for name, neutral in NEUTRAL_OF_POINTS.items():
                if tuple(np.ravel(step.get(name, neutral))) != neutral:
                    raise ConfigError(
                        f'test pipeline step GlobalRotScaleTrans: {name}={step[name]}, expected '
                        f'{list(neutral)}: a test does not move points'
                    )
        if step['type'] == 'MultiScaleFlipAug3D':
            if step.get('pts_scale_ratio', 1) not in (1, [1], (1,)):
                raise ConfigError(
                    f'test pipeline step MultiScaleFlipAug3D: pts_scale_ratio={step["pts_scale_ratio"]}, '
                    f'expected 1'
                )
            transforms = _picture_steps(step.get('transforms', ()))
            step = dict(step, type='MultiScaleFlipAug', transforms=transforms)
        if step['type'] not in OF_POINTS:
            picture_steps.append(dict(step))
    return picture_steps


def frame(data: Mapping[str, Any]) -> FusedFrame:
    """Return `data`, one collated sample of the test loader (batch 1) by key, as a frame.

    Raises:
        DataError: no picture, points or matrix, several samples, or points that were moved.
    """
    check_given(data, ('img', 'points', 'img_metas'))
    points, meta = only(data['points'], 'points'), only(data['img_metas'], 'img_metas')
    image = only(data['img'], 'img').cpu().numpy()
    check_given(meta, ('lidar2img', 'scale_factor', 'img_shape'))
    is_flipped = meta.get('pcd_horizontal_flip') or meta.get('pcd_vertical_flip')
    is_moved = meta.get('pcd_scale_factor', 1.0) != 1.0 or np.any(meta.get('pcd_trans', 0.0))
    is_turned = not np.array_equal(meta.get('pcd_rotation', np.eye(3)), np.eye(3))
    if is_flipped or is_moved or is_turned:
        raise DataError('the test pipeline moves the points; expected them as the LiDAR measured them')
    scale_x, scale_y = meta['scale_factor'][:2]
    left, top = meta.get('img_crop_offset', (0.0, 0.0))
    to_input = np.array([[scale_x, 0, -left], [0, scale_y, -top], [0, 0, 1]], np.float64)
    if meta.get('flip'):
        to_input[0] = [-scale_x, 0, meta['img_shape'][1] + left]
    return FusedFrame(
        np.ascontiguousarray(points.cpu().numpy(), np.float32),
        str(meta.get('sample_idx', '')),
        images=np.ascontiguousarray(image.reshape(1, *image.shape[-3:]), np.float32),
        calibration=_calibration(np.asarray(meta['lidar2img']), to_input),
        image_files=picture_files(meta),
    )


def _calibration(lidar2image: np.ndarray, to_input: np.ndarray) -> dict[str, np.ndarray]:
    """Return the calibration of a frame as the runtime's `camera_matrices` does, by other code."""
    (scale_x, skew_x, left), (skew_y, scale_y, top) = to_input[:2]
    img_aug = [[scale_x, skew_x, 0, left], [skew_y, scale_y, 0, top], [0, 0, 1, 0], [0, 0, 0, 1]]
    return dict(
        lidar2image=np.float32(lidar2image)[None],
        img_aug_matrix=np.float32(img_aug)[None],
        lidar_aug_matrix=np.eye(4, dtype=np.float32),
    )


def moments(cfg: Any, rule: FusionRule, infos: Path, root: str | Path | None = None) -> Iterator[FusedFrame]:
    """Yield the frames of infos as `mm2onnx run` prepares them; see `SequenceFamily.moments`.

    Sweeps are in the folder that the config's data set names (`pts_prefix`), if it names one, whatever the
    infos say.
    """
    prefix = test_dataset(cfg).get('pts_prefix')
    for rig in read_frames(infos, rule.views, root):
        if prefix:
            path = Path(rig.info['point_cloud']['velodyne_path'])
            moved = dict(rig.info['point_cloud'], velodyne_path=str(path.parent.parent / prefix / path.name))
            rig = dataclasses.replace(rig, info=dict(rig.info, point_cloud=moved))
        yield frame_of_rig(rig.read_pictures(), rig, rule, root)


def dumped(tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> FusedFrame:
    """Return a dumped frame as the model got it; `manifest` may name the `frame`.

    `tensors` are by name, in the shapes and types of a `FusedFrame` and its calibration. DataError: a
    tensor is missing.
    """
    check_dumped(tensors, ['points', 'images', *CAMERA])
    return FusedFrame(
        np.ascontiguousarray(tensors['points']),
        str(manifest.get('frame', '')),
        images=tensors['images'],
        calibration={name: tensors[name] for name in CAMERA} | dict(lidar_aug_matrix=np.eye(4, dtype='f4')),
    )


# ---- generated frames


def generated(rule: FusionRule, count: int) -> Iterator[FusedFrame]:
    """Yield `count` frames of generated pictures and sweeps, each with a camera of its own; sizes alternate.

    Cameras look ahead, to the side and back, so that points are behind them and outside of their pictures.
    Some voxels have a single point, one of each frame gets `CROWD` more.
    """
    for index, sweep in enumerate(proof_samples.generated(rule.voxels, count)):
        rng = np.random.default_rng([index, 11])
        picture = _picture(rng, rule, index)
        lidar2image = _camera(rng, *picture.shape[:2], YAWS[index % len(YAWS)])
        prepared = rule.views.apply(picture)
        yield FusedFrame(
            _crowded(sweep.points, rule, rng),
            f'generated frame {index}',
            images=prepared.tensor[None],
            calibration=_calibration(lidar2image, prepared.to_input),
        )


def _picture(rng: np.random.Generator, rule: FusionRule, index: int) -> np.ndarray:
    """Return a picture (h, w, 3) uint8, about as large as the rule's result if that is below KITTI's."""
    scale = min(1.0, min(rule.views.img_scale) / SIZE_HW[0]) if rule.views.img_scale else 1.0
    factors = OTHER_SIZES[index % len(OTHER_SIZES)]
    height, width = (round(scale * side * factor) for side, factor in zip(SIZE_HW, factors, strict=True))
    picture, _ = make_scene(rng, height, width, SHAPES)
    return picture


def _camera(rng: np.random.Generator, height: int, width: int, yaw: float) -> np.ndarray:
    """Return the matrix (4, 4) float64 from the LiDAR to a picture of a camera that looks in a direction."""
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


def _crowded(points: np.ndarray, rule: FusionRule, rng: np.random.Generator) -> np.ndarray:
    """Return points (P, D), and many more in the voxel of one of them, in random order."""
    low, high = np.float32(rule.voxels.point_cloud_range).reshape(2, 3)
    size = np.float32(rule.voxels.voxel_size)
    inside = points[((points[:, :3] > low) & (points[:, :3] < high)).all(1)]
    if not len(inside):
        return points
    crowd = np.repeat(inside[rng.integers(len(inside), size=1)], CROWD, axis=0)
    cell = np.floor((crowd[:, :3] - low) / size)
    crowd[:, :3] = low + size * (cell + rng.uniform(0.1, 0.9, (CROWD, 3)).astype(np.float32))
    crowd[:, 3:] = rng.uniform(0, 1, (CROWD, points.shape[1] - 3))
    return rng.permutation(np.concatenate([points, crowd]))


def one_point_frame(frame: FusedFrame, limits: Sequence[float]) -> FusedFrame:
    """Return a frame of a picture of one colour and of one point, twice: with a single one mmdet3d fails.

    The network's input of the picture is zeros. The point is the furthest one of `frame` in the range
    `limits`: x, y, z of the least corner, then of the greatest, m; the first of all if none is in range.
    """
    plain = proof_samples.plain_moment(frame, limits)
    return dataclasses.replace(plain, points=np.repeat(plain.points, 2, axis=0))


def generated_dataset(folder: Path, cfg: Any, rule: FusionRule) -> dict[str, Any]:
    """Write two frames in the layout of KITTI, and return the config of a data set of them.

    See `SequenceFamily.generated_dataset`; the second picture has other sides than the first. OSError: a file
    cannot be written.
    """
    from mmdet3d.datasets import KittiDataset

    cfg = copy.deepcopy(cfg)
    without_augmentation(cfg)
    prefix = test_dataset(cfg).get('pts_prefix') or 'velodyne'
    pictures, sweeps = Path('training', 'image_2'), Path('training', prefix)
    for subfolder in (pictures, sweeps):
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
    infos = []
    for index, generated_frame in enumerate(generated(rule, 2)):
        rng = np.random.default_rng([index, 13])
        picture = _picture(rng, rule, index)
        image_path, points_path = pictures / f'{index:06d}.png', sweeps / f'{index:06d}.bin'
        if not cv2.imwrite(str(folder / image_path), picture):
            raise OSError(f'{folder / image_path}: cannot be written')
        points = rng.uniform(0, 1, (len(generated_frame.points), rule.load_dim)).astype(np.float32)
        points[:, :3] = generated_frame.points[:, :3]
        (folder / points_path).write_bytes(points.tobytes())
        rotation = np.eye(4)
        rotation[:3, :3] = Quaternion(axis=[0.2, 1.0, 0.1], degrees=0.5).rotation_matrix
        camera = _camera(rng, *picture.shape[:2], 0.0)
        intrinsics = np.eye(4)
        intrinsics[:3] = [[700.0, 0, 600, 45], [0, 702, 180, -0.2], [0, 0, 1, 0.003]]
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
