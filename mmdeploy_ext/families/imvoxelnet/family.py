"""ImVoxelNet: supported configs and model."""

from collections.abc import Mapping
from typing import Any

import mmdet3d.datasets  # noqa: F401 - registers data sets and steps of pipelines
from mmdet3d.models import builder
from mmdet3d.models.detectors import ImVoxelNet
from torch import nn

from mmdeploy_ext.base.config import refused_by_name, test_pipeline
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.anchor_heads import PER_CLASS_HEAD, UNTRACED, check_anchor_head
from mmdeploy_ext.families.common.box_conventions import note_head_convention, state_head_convention
from mmdeploy_ext.families.common.samples import only
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.imvoxelnet import graphs
from mmdeploy_ext.families.imvoxelnet.reference import ImVoxelNetReference, feeds
from mmdeploy_ext.families.no_family import missing_operators
from mmdeploy_ext.runtime.preprocess.cam2img import PROJECTION
from mmdeploy_ext.runtime.preprocess.pipeline_rule import steps_of
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.models.building import build_without_weights, names_of_class
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint

FRAME, HEAD = 'LIDAR', 'Anchor3DHead'
"""Supported `coord_type`, and the head or its base."""
MOVED = ('AffineResize', 'RandomCenterCropPad')
"""Pipeline steps after which places are not `scale_factor` times places in the original."""


class ImVoxelNetFamily(ImageFamily):
    name = 'imvoxelnet'
    task = 'mmdeploy_ext.families.imvoxelnet.task'
    forms = ('full', 'raw')
    reference = ImVoxelNetReference
    untraced = ('.forward', 'forward_test', 'simple_test', '.extract_feat', *UNTRACED)
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    facts = staticmethod(graphs.facts_of)
    feeds = staticmethod(feeds)

    def claims(self, cfg: Any) -> Claim:
        names = names_of_class(builder.DETECTORS, cfg.model.get('type'))
        if ImVoxelNet.__name__ not in names or missing_operators(cfg.model):
            return Claim.NO
        return Claim.DETECTOR

    def check(self, cfg: Any, options: Options) -> None:
        self.check_parts(cfg.filename, cfg.model)
        detector_parts.check_box_type(cfg, 'LiDAR')
        with refused_by_name(cfg):
            detector_parts.check_rotated_limits(detector_parts.test_cfg_of(cfg), 'max_num')
            for step in steps_of(test_pipeline(cfg), *MOVED):
                raise ConfigError(
                    f'test pipeline step {step["type"]}: mmdet3d scales image positions only by '
                    'scale_factor; expected Resize, Normalize and Pad'
                )
        detector_parts.check(cfg.model, options)

    def check_parts(self, filename: str, model: Mapping[str, Any]) -> None:
        frame, head = str(model.get('coord_type')).upper(), model.get('bbox_head') or {}
        heads = names_of_class(builder.HEADS, head.get('type'))
        if frame != FRAME or HEAD not in heads or PER_CLASS_HEAD in heads:
            raise ConfigError(
                f'{filename}: model.coord_type={model.get("coord_type")!r} and '
                f'model.bbox_head.type={head.get("type")!r}; ImVoxelNet supports {FRAME!r} and {HEAD}'
            )
        check_anchor_head(filename, 'model.bbox_head', head)

    def build(self, cfg: Any) -> nn.Module:
        self.check_parts(cfg.filename, cfg.model)
        model = build_without_weights(cfg, builder.build_detector, 'backbone')
        state_head_convention(model, cfg, 'bbox_head')
        return model

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        super().load_weights(model, checkpoint)
        note_head_convention(model, checkpoint, model.bbox_head)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.bbox_head.num_classes)

    def check_dataset(self, cfg: Any, dataset: Any) -> None:
        if len(dataset) and PROJECTION not in only(dataset[0].get('img_metas', {}), 'img_metas'):
            raise ConfigError(
                f'{cfg.filename}: data.test: Collect3D does not collect {PROJECTION}, the matrix from '
                'LiDAR to image, in its metas; add it'
            )
