"""LiDAR detectors: how they are checked, built and loaded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmdet3d.models import build_model
from mmdet3d.models.builder import DETECTORS, HEADS
from torch import nn

from mmdeploy_ext.base.config import refused_values, test_pipeline
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.families.base import BACKBONE, find_family
from mmdeploy_ext.families.common.box_conventions import (
    note_head_convention,
    state_head_convention,
    with_heights,
)
from mmdeploy_ext.families.common.lidar_graphs import check_form, load_whole
from mmdeploy_ext.families.common.lidar_parts import grid_size, parts_of, prefix_of, rule_of_layer
from mmdeploy_ext.families.common.pillars import DYNAMIC_ENCODER, ENCODERS, MEANS, SCATTER, has_pillars
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.models.building import build_without_weights, names_of_class
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint, load_strict
from mmdeploy_ext.upstream.weights.sparse_checkpoint import find_kernels

UNTRACED = (
    '.forward', 'forward_test', 'simple_test', 'simple_test_pts', '.extract_feat', 'extract_pts_feat',
    'voxelize', '*voxel_encoder.forward', 'forward_batch', 'forward_single',
)  # fmt: skip
COLUMNS = dict(LoadPointsFromFile=[0, 1, 2], LoadPointsFromMultiSweeps=[0, 1, 2, 4])
DYNAMIC_DETECTOR = 'DynamicVoxelNet'
SPARSE_ENCODERS = dict(SASSD='SparseEncoderSASSD')
"""Detector -> its sparse encoder; default SparseEncoder."""


class LidarMethods:
    """Methods of families of LiDAR detectors; derive from this class before `SequenceFamily`.

    `check_parts(filename, model)` raises ConfigError for unsupported parts.
    """

    name: str
    check_parts: Callable[[str, Mapping[str, Any]], None]

    def check_model(self, cfg: Any) -> None:
        with refused_values(cfg, 'model'):
            self.check_parts(cfg.filename, cfg.model)

    def check(self, cfg: Any, options: Options) -> None:
        if options.fp16_io:
            raise UsageError(f'--fp16-io: points and the map between both graphs of {self.name} stay float32')
        self.check_model(cfg)
        check_points_loaded(cfg)
        encoder = cfg.model[f'{prefix_of(cfg.model)}middle_encoder']
        check_form(cfg.filename, options, encoder.type != SCATTER)

    def build(self, cfg: Any) -> nn.Module:
        self.check_model(cfg)
        model = build_without_weights(cfg, build_model, 'img_backbone')
        if not has_pillars(model):
            find_family(cfg, BACKBONE).settings(cfg, model)  # refuses grids that disagree
        state_head_convention(model, cfg, f'{prefix_of(cfg.model)}bbox_head')
        return model

    def preprocess_rule(self, cfg: Any) -> Any:
        self.check_model(cfg)
        prefix = prefix_of(cfg.model)
        if cfg.model[f'{prefix}middle_encoder'].type != SCATTER:
            return find_family(cfg, BACKBONE).preprocess_rule(cfg)
        return rule_of_layer(cfg.model[f'{prefix}voxel_layer'], points_width(cfg.model)[1], 'zyx')

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        parts = parts_of(model)
        if hasattr(model, 'box_convention'):  # built by a family, not for parts
            note_head_convention(model, checkpoint, parts.head)
            if model.box_convention == '0.17' and hasattr(parts.voxel_encoder, 'pfn_layers'):
                checkpoint = with_heights(parts.voxel_encoder, f'{parts.prefix}voxel_encoder', checkpoint)
        encoder = f'{parts.prefix}middle_encoder'
        if find_kernels(getattr(model, encoder, nn.Module())):
            load_whole(model, checkpoint, encoder)
        else:  # pillars, or a user's model that derives from a LiDAR detector
            load_strict(model, checkpoint)

    def num_classes(self, model: nn.Module) -> int:
        return int(parts_of(model).head.num_classes)


def is_dynamic(model: Mapping[str, Any]) -> bool:
    return DYNAMIC_DETECTOR in names_of_class(DETECTORS, model.get('type'))


def check_points_side(filename: str, model: Mapping[str, Any], detector: str, heads: Sequence[str]) -> None:
    prefix, dynamic = prefix_of(model), is_dynamic(model)
    middle = (model.get(f'{prefix}middle_encoder') or {}).get('type')
    if middle == SCATTER:
        encoders = (DYNAMIC_ENCODER,) if dynamic else ENCODERS
    else:
        encoders = ('DynamicSimpleVFE',) if dynamic else ('HardSimpleVFE',)
    sparse = SPARSE_ENCODERS.get(model['type'])
    middle_encoders = (sparse,) if sparse else ('SparseEncoder', SCATTER)
    exported = dict(middle_encoder=middle_encoders, voxel_encoder=encoders, bbox_head=heads)
    for name, allowed in exported.items():
        part_type = (model.get(key := prefix + name) or {}).get('type')
        type_names = names_of_class(HEADS, part_type) if name == 'bbox_head' else [part_type]
        if not set(type_names) & set(allowed):
            raise ConfigError(
                f'{filename}: model.{key}.type={part_type!r}; {detector} supports {" or ".join(allowed)}'
            )
    if middle == SCATTER:
        _check_pillars(filename, model)
    for key in ('img_backbone', 'pts_fusion_layer'):
        if model.get(key):
            raise ConfigError(f'{filename}: model.{key}: {detector} is supported only without cameras')


def _check_pillars(filename: str, model: Mapping[str, Any]) -> None:
    prefix, dynamic = prefix_of(model), is_dynamic(model)
    key, layer = f'model.{prefix}voxel_layer', model.get(f'{prefix}voxel_layer') or {}
    cells = grid_size(layer, f'{filename}: {key}')
    if (layer['max_num_points'] < 1) != dynamic:
        raise ConfigError(
            f'{filename}: {key}.max_num_points={layer["max_num_points"]}; {DYNAMIC_DETECTOR} needs -1 '
            '(all points of a pillar), other detectors a fixed number'
        )
    rows, columns = model[f'{prefix}middle_encoder']['output_shape']
    if columns < cells[0] or rows < cells[1]:
        raise ConfigError(
            f'{filename}: model.{prefix}middle_encoder.output_shape={[rows, columns]} (rows, columns), '
            f'but {key} gives {cells[1]} rows and {cells[0]} columns of pillars'
        )


def check_points_loaded(cfg: Any) -> None:
    """Refuse a test pipeline with another point width than the model's."""
    key, in_channels = points_width(cfg.model)
    loaders = [step for step in test_pipeline(cfg) if step.get('type') in COLUMNS]
    if not loaders:
        return
    loader = loaders[-1]  # a step that loads sweeps of the past makes the points that go on
    use_dim = loader.get('use_dim', COLUMNS[loader['type']])
    width = use_dim if isinstance(use_dim, int) else len(use_dim)
    if width != in_channels:
        raise ConfigError(
            f'{cfg.filename}: use_dim={use_dim} of {loader["type"]} loads {width} values per point, but '
            f'model.{key}.in_channels is {in_channels}'
        )


def points_width(model: Mapping[str, Any]) -> tuple[str, int]:
    prefix = prefix_of(model)
    part = 'middle_encoder' if model[f'{prefix}voxel_encoder']['type'] in MEANS else 'voxel_encoder'
    return prefix + part, int(model[prefix + part].get('in_channels', 4))
