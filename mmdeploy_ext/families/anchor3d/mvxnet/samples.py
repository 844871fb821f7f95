"""Frames of one picture and one sweep: the rule of a config, samples of KITTI, dumps and generated ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.base.config import refused_by_name, test_dataset, test_pipeline
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.anchor3d.mvxnet.runtime import CAMERA, frame_of_rig
from mmdeploy_ext.families.common.lidar_parts import rule_of_layer
from mmdeploy_ext.families.common.samples import check_dumped, check_given, only, picture_files
from mmdeploy_ext.families.sequence_data import SequenceData
from mmdeploy_ext.families.synthetic.kitti import generated_dataset, generated_moments
from mmdeploy_ext.families.synthetic.moments import plain_moment
from mmdeploy_ext.runtime.frames import FusedFrame
from mmdeploy_ext.runtime.infos import read_frames
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image
from mmdeploy_ext.runtime.preprocess.pipeline_rule import rule_from_pipeline
from mmdeploy_ext.runtime.preprocess.points import point_rule
from mmdeploy_ext.spec.preparation import FusionRule

OF_POINTS = ('LoadPointsFromFile', 'GlobalRotScaleTrans', 'PointsRangeFilter')
NEUTRAL_OF_POINTS = dict(rot_range=(0, 0), scale_ratio_range=(1, 1), translation_std=(0, 0, 0))


def fusion_rule(cfg: Any, width: int) -> FusionRule:
    points = point_rule(cfg, width)
    if points.past is not None:
        raise ConfigError(f'{cfg.filename}: LoadPointsFromMultiSweeps: past sweeps are not supported')
    voxels = rule_of_layer(cfg.model.pts_voxel_layer, width, 'zyx')
    steps = test_pipeline(cfg)
    with refused_by_name(cfg):
        picture = rule_from_pipeline(_picture_steps(steps))
    return FusionRule(picture, voxels, load_dim=points.load_dim, use_dim=points.use_dim)


def _picture_steps(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    picture_steps = []
    for step in steps:
        if step['type'] == 'GlobalRotScaleTrans':
            for name, neutral in NEUTRAL_OF_POINTS.items():
                if tuple(np.ravel(step.get(name, neutral))) != neutral:
                    raise ConfigError(
                        f'test pipeline step GlobalRotScaleTrans: {name}={step[name]}, expected '
                        f'{list(neutral)}, which does not move points'
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
    check_given(data, ('img', 'points', 'img_metas'))
    points, meta = only(data['points'], 'points'), only(data['img_metas'], 'img_metas')
    image = only(data['img'], 'img').cpu().numpy()
    check_given(meta, ('lidar2img', 'scale_factor', 'img_shape'))
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
    """Shares no code with the runtime's `camera_matrices`, which a proof compares with it."""
    (scale_x, skew_x, left), (skew_y, scale_y, top) = to_input[:2]
    img_aug = [[scale_x, skew_x, 0, left], [skew_y, scale_y, 0, top], [0, 0, 1, 0], [0, 0, 0, 1]]
    return dict(
        lidar2image=np.float32(lidar2image)[None],
        img_aug_matrix=np.float32(img_aug)[None],
        lidar_aug_matrix=np.eye(4, dtype=np.float32),
    )


def moments(cfg: Any, rule: FusionRule, infos: Path, root: str | Path | None = None) -> Iterator[FusedFrame]:
    prefix = test_dataset(cfg).get('pts_prefix')
    for rig in read_frames(infos, rule.views, root):
        if prefix:
            path = Path(rig.info['point_cloud']['velodyne_path'])
            moved = dict(rig.info['point_cloud'], velodyne_path=str(path.parent.parent / prefix / path.name))
            rig = dataclasses.replace(rig, info=dict(rig.info, point_cloud=moved))
        yield frame_of_rig(rig.read_pictures(), rig, rule, root)


def dumped(tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> FusedFrame:
    check_dumped(tensors, ['points', 'images', *CAMERA])
    return FusedFrame(
        np.ascontiguousarray(tensors['points']),
        str(manifest.get('frame', '')),
        images=tensors['images'],
        calibration={name: tensors[name] for name in CAMERA} | dict(lidar_aug_matrix=np.eye(4, dtype='f4')),
    )


def generated(rule: FusionRule, count: int) -> Iterator[FusedFrame]:
    for points, picture, lidar2image, name in generated_moments(rule, count):
        prepared = prepare_image(rule.views, picture)
        calibration = _calibration(lidar2image, prepared.to_input)
        yield FusedFrame(points, name, images=prepared.tensor[None], calibration=calibration)


def mirrored(frame: FusedFrame) -> FusedFrame:
    """Return the frame with its picture flipped and moved by a tenth."""
    img_aug, (height, width) = frame.calibration[CAMERA[1]].copy(), frame.images.shape[2:]
    img_aug[0, 0] *= -1
    img_aug[0, :2, 3] += 1.1 * width, 0.1 * height
    return dataclasses.replace(frame, calibration={**frame.calibration, CAMERA[1]: img_aug})


def one_point_frame(frame: FusedFrame, limits: Sequence[float]) -> FusedFrame:
    plain = plain_moment(frame, limits)
    return dataclasses.replace(plain, points=np.repeat(plain.points, 2, axis=0))


class MvxNetData(SequenceData):
    frame, moments, dumped_frame = staticmethod(frame), staticmethod(moments), staticmethod(dumped)
    generated_sweeps, generated_dataset = staticmethod(generated), staticmethod(generated_dataset)
