"""BEVFusion: frames, supported configs, graphs, references and runtimes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from mm2onnx_driving.bevfusion.graphs import facts_of, graphs
from mm2onnx_driving.bevfusion.model.fusion import check_parts
from mm2onnx_driving.bevfusion.reference import BEVFusionReference
from mm2onnx_driving.bevfusion.samples import dumped, frame, fusion_rule, moments
from mmdeploy_ext.base.config import refused_values
from mmdeploy_ext.base.errors import CheckpointError, ConfigError
from mmdeploy_ext.base.source_code import ModelClass
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common.samples import result
from mmdeploy_ext.families.common.sparse_graph import check_form, load_whole
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.families.sequence_data import SequenceData
from mmdeploy_ext.families.synthetic.info_files import generated_dataset
from mmdeploy_ext.families.synthetic.moments import fused_frames
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.preparation import FusionRule
from mmdeploy_ext.upstream.models.building import build_without_weights
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint

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
