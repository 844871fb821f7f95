"""BEVFusion: frames, supported configs, graphs, references and runtimes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmdet3d.models import build_model
from torch import nn

from mm2onnx_driving.bevfusion.fork import (
    SPARSE_ENCODER,
    Fork,
    ForkReference,
    RepositoryMoments,
    adapt,
    with_truth,
)
from mm2onnx_driving.bevfusion.fusion import check_parts
from mm2onnx_driving.bevfusion.graphs import facts_of, graphs
from mm2onnx_driving.bevfusion.reference import BEVFusionReference
from mm2onnx_driving.bevfusion.runtime import NO_POINTS, frame_of_rig
from mmdeploy_ext.base.config import refused_values, test_pipeline
from mmdeploy_ext.base.errors import CheckpointError, ConfigError, DataError
from mmdeploy_ext.base.source_code import ModelClass
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common.lidar_graphs import check_form, load_whole
from mmdeploy_ext.families.common.lidar_parts import rule_of_layer
from mmdeploy_ext.families.common.samples import check_dumped, only, picture_files, result
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.families.sequence_data import SequenceData
from mmdeploy_ext.families.synthetic.info_files import generated_dataset
from mmdeploy_ext.families.synthetic.moments import fused_frames
from mmdeploy_ext.runtime.calibration import MATRICES
from mmdeploy_ext.runtime.frames import FusedFrame
from mmdeploy_ext.runtime.infos import RigFrame, read_frames, read_infos
from mmdeploy_ext.runtime.preprocess.points import point_rule
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.preparation import FusionRule, MultiViewRule
from mmdeploy_ext.upstream.models.building import build_without_weights
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint

# Samples of BEVFusion: preprocessing rule, frames of data sets, dumps and generated frames.
#
# Glossary: N cameras, P points, V values per point.


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


# ---- frames


class BEVFusionData(SequenceData):
    compared = ('cells', 'depth', 'bev')
    frame, moments = staticmethod(frame), staticmethod(moments)
    dumped_frame, generated_sweeps = staticmethod(dumped), staticmethod(fused_frames)

    def generated_dataset(self, folder: Path, cfg: Any, rule: FusionRule) -> dict[str, Any]:
        default = 'NuScenesDataset' if rule.views is None else 'FusionNuScenesDataset'
        dataset = generated_dataset(folder, cfg, dict(type=default), rule.views, rule.voxels)
        if cfg.get('fork'):
            with_truth(Path(dataset['ann_file']))
            dataset.update(type=RepositoryMoments, fork=cfg.fork)
        return dataset


# ---- families

DEPTH_KERNEL = 'encoders.camera.vtransform.dtransform.0.weight'


class BEVFusionFamily(SequenceFamily):
    name = 'bevfusion_det'
    files = ('rig', 'depth', 'lidar', 'frame')
    samples = 'fused'
    graphs, facts = staticmethod(graphs), staticmethod(facts_of)
    result, data = staticmethod(result), BEVFusionData()
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'predictions', 'camera_view', 'lidar_view',
        '*vtransform.pool', 'get_bboxes', 'suppress', 'decode',
    )  # fmt: skip

    def claims(self, cfg: Any) -> Claim:
        return Claim.DETECTOR if cfg.model.get('type') == 'BEVFusion' else Claim.NO

    def for_config(self, cfg: Any) -> SequenceFamily:
        adapt(cfg)
        return self

    def check(self, cfg: Any, options: Options) -> None:
        if cfg.get('fork') and options.contract != 'portable':
            raise ConfigError(
                f'{cfg.filename}: is a config of the repository {cfg.fork.root}, which is proven against '
                f'its own code with the default contract only; omit --contract {options.contract}'
            )
        if options.precision != 'fp32':
            raise ConfigError(f'{cfg.filename}: BEVFusion is exported in float32; omit --precision')
        check_model(cfg)
        check_form(cfg.filename, options, bool(cfg.model.encoders.get('lidar')))

    def model_classes(self, model: nn.Module) -> tuple[ModelClass, ...]:
        classes = super().model_classes(model)
        if not model.fork:
            return classes
        repository_classes = [ModelClass(**entry) for entry in model.fork.process.facts['classes']]
        ours = [entry for entry in classes if entry.ours and entry.name != Fork.__name__]
        return *repository_classes, *ours

    def reference(self, model: nn.Module) -> BEVFusionReference:
        if model.fork and model.fork.checkpoint:
            return ForkReference(model)
        return BEVFusionReference(model)

    def build(self, cfg: Any) -> nn.Module:
        check_model(cfg)
        model = build_without_weights(cfg, build_model)
        model.fork = cfg.get('fork')
        if model.fork:
            model.copied_libraries = dict(mmdet3d=Path(model.fork.root) / 'mmdet3d')
        return model

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        depth = checkpoint.state_dict.get(DEPTH_KERNEL)
        if depth is not None and depth.ndim == 4 and depth.shape[1] == 6:
            raise CheckpointError(
                f'{checkpoint.path}: {DEPTH_KERNEL} has six depth channels, as in mit-han-lab/bevfusion '
                'after db75150; this model has one: use a published checkpoint, or one trained with '
                'db75150'
            )
        if getattr(model, 'fork', None):
            model.fork.checkpoint = str(Path(checkpoint.path).resolve())
        if 'lidar' in model.sensors:
            load_whole(model, checkpoint, SPARSE_ENCODER)
        else:
            super().load_weights(model, checkpoint)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.heads['object'].num_classes)

    def preprocess_rule(self, cfg: Any) -> FusionRule:
        check_model(cfg)
        return fusion_rule(cfg)


def check_model(cfg: Any) -> None:
    with refused_values(cfg, 'model'):
        _check_parts(cfg)


def _check_parts(cfg: Any) -> None:
    model, name = cfg.model, f'{cfg.filename}: model'
    try:
        check_parts(model.get('encoders') or {}, model.get('fuser'), model.get('heads') or {})
    except ConfigError as error:
        raise ConfigError(f'{name}: {error}') from error
    lidar, camera = model.encoders.get('lidar'), model.encoders.get('camera')
    if not lidar and camera.vtransform.type != 'LSSTransform':
        raise ConfigError(
            f'{name}.encoders.camera.vtransform.type={camera.vtransform.type!r} needs points, and the '
            'model has no LiDAR; expected LSSTransform'
        )
    encoder_type = (lidar.get('backbone') or {}).get('type') if lidar else ''
    if lidar and encoder_type != 'BEVFusionSparseEncoder':
        raise ConfigError(
            f'{name}.encoders.lidar.backbone.type={encoder_type!r}; expected BEVFusionSparseEncoder, with '
            'axes x, y, z'
        )
    branches = model.heads.object.get('common_heads') or {}
    if not isinstance(branches, Mapping) or 'vel' not in branches:
        raise ConfigError(f'{name}.heads.object.common_heads has no vel; the exported boxes need velocities')
