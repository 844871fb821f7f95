"""Samples of BEVFusion: preprocessing rule, frames of data sets, dumps and generated frames.

Glossary: N cameras, P points, V values per point.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mm2onnx_driving.bevfusion.runtime import NO_POINTS, frame_of_rig
from mmdeploy_ext.base.config import refused_values, test_pipeline
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.families.common.samples import check_dumped, only, picture_files
from mmdeploy_ext.families.common.voxel_grid import rule_of_layer
from mmdeploy_ext.runtime.calibration import MATRICES
from mmdeploy_ext.runtime.frames import FusedFrame
from mmdeploy_ext.runtime.infos import RigFrame, read_frames, read_infos
from mmdeploy_ext.runtime.preprocess.points import point_rule
from mmdeploy_ext.spec.preparation import FusionRule, MultiViewRule

SOURCE = 900, 1600
"""Height and width of nuScenes' pictures, pixels: default `source` of ImageAug3D."""


def fusion_rule(cfg: Any) -> FusionRule:
    encoders = cfg.model.encoders
    with refused_values(cfg, 'the test pipeline or the image entries of model.encoders'):
        views = _views(cfg, encoders.camera) if encoders.get('camera') else None
    if not encoders.get('lidar'):
        return FusionRule(views, None)
    with refused_values(cfg, 'model.encoders.lidar'):
        channels = int(encoders.lidar.backbone.in_channels)
        voxels = rule_of_layer(encoders.lidar.voxelize, channels, 'xyz')
    with refused_values(cfg, 'the test pipeline'):
        return FusionRule(views, voxels, **_loading(cfg, channels))


def _loading(cfg: Any, width: int) -> dict[str, Any]:
    rule = point_rule(cfg, width)
    if rule.past is None:
        return dict(load_dim=rule.load_dim, use_dim=rule.use_dim)
    if rule.use_dim != tuple(range(rule.load_dim)):
        raise ConfigError(
            f'{cfg.filename}: use_dim={list(rule.use_dim)} of LoadPointsFromFile; expected all of '
            f'load_dim={rule.load_dim}, since LoadPointsFromMultiSweeps selects the columns'
        )
    past = dict(pad_empty_sweeps=rule.past.pad_empty, remove_close=rule.past.remove_close)
    return dict(load_dim=rule.load_dim, use_dim=rule.past_dim, sweeps=rule.past.max_sweeps, **past)


def _views(cfg: Any, camera: Any) -> MultiViewRule:
    steps = {step.get('type'): step for step in test_pipeline(cfg)}
    for name in ('ImageAug3D', 'ImageNormalize'):
        if name not in steps:
            raise ConfigError(f'{cfg.filename}: the test pipeline has no {name}, which prepares the images')
    height, width = camera.vtransform.image_size
    low, high = steps['ImageAug3D']['resize_lim']
    bottom = float(np.mean(steps['ImageAug3D'].get('bot_pct_lim', (0.0, 0.0))))
    scale = float(np.mean((low, high)))
    source = tuple(steps['ImageAug3D'].get('source', SOURCE))
    resized = int(source[0] * scale), int(source[1] * scale)
    normalise = steps['ImageNormalize']
    return MultiViewRule(
        mean=tuple(255.0 * value for value in normalise['mean']),
        std=tuple(255.0 * value for value in normalise['std']),
        to_rgb=True,
        source=source,
        scale=scale,
        resized=resized,
        crop=(int((1 - bottom) * resized[0]) - height, max(0, resized[1] - width) // 2),
        size=(height, width),
    )


def frame(data: Mapping[str, Any]) -> FusedFrame:
    """Return a collated sample of the test loader (batch 1) as a fused frame.

    It has `img` (N, 3, H, W), `points` (P, V) and `img_metas`.
    """
    if 'img_metas' not in data or not {'img', 'points'} & set(data):
        raise DataError(
            'the test pipeline must return img, points and img_metas; check the keys of Collect3D'
        )
    meta = only(data['img_metas'], 'img_metas')
    points = only(data['points'], 'points').cpu().numpy() if 'points' in data else NO_POINTS
    images = only(data['img'], 'img').cpu().numpy() if 'img' in data else None
    if images is not None and images.ndim == 5 and len(images) == 1:  # the loader's batch
        images = images[0]
    return FusedFrame(
        np.ascontiguousarray(points, np.float32),
        str(meta.get('sample_idx', '')),
        images=images,
        calibration={name: np.asarray(meta[name], np.float32) for name in MATRICES if name in meta},
        image_files=picture_files(meta),
    )


def moments(cfg: Any, rule: FusionRule, infos: Path, root: str | Path | None = None) -> Iterator[FusedFrame]:
    if rule.views is not None:
        for rig in read_frames(infos, rule.views, root):
            yield frame_of_rig(rig.read_pictures(), rig, rule, root)
        return
    no_cameras = np.zeros((0, 3, 3)), np.zeros((0, 4, 4)), np.eye(4)
    for info in read_infos(infos):
        rig = RigFrame(str(info['token']), (), *no_cameras, info['timestamp'] / 1e6, None, info, infos)
        yield frame_of_rig((), rig, rule, root)


def dumped(tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> FusedFrame:
    names = ['points', 'images', *MATRICES] if 'cells' in tensors else ['points']
    check_dumped(tensors, names)
    return FusedFrame(
        np.ascontiguousarray(tensors['points']),
        str(manifest.get('frame', '')),
        images=tensors.get('images'),
        calibration={name: tensors[name] for name in MATRICES if name in tensors},
    )
