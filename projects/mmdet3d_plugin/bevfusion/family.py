"""The families of sparse LiDAR backbones: BEVFusion, the published CenterPoint, mmdet3d's encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import Claim, build_without_weights, register_family
from mmdeploy_ext.families.sparse import EncoderSettings, Int8Reference, SparseFamily
from mmdeploy_ext.stack import compat
from mmdeploy_ext.weights.sparse_checkpoint import load_model
from projects.mmdet3d_plugin.bevfusion import grid
from projects.mmdet3d_plugin.bevfusion.model import axes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from mmdeploy_ext.inputs.points import VoxelRule
    from mmdeploy_ext.weights.sparse_checkpoint import LoadReport

# Where the parts are in `model`, by the key of its sparse encoder.
PARTS = {
    'encoder': dict(voxels='voxel_layer', means='', backbone=''),
    'pts_middle_encoder': dict(voxels='pts_voxel_layer', means='pts_voxel_encoder', backbone='pts_backbone'),
    'middle_encoder': dict(voxels='voxel_layer', means='voxel_encoder', backbone='backbone'),
}
MEANS = ('HardSimpleVFE', 'DynamicSimpleVFE')


def _parts(cfg: Any) -> dict[str, str] | None:
    """Return the keys of a config's parts, the encoder's under 'encoder'; None without a sparse encoder."""
    model = cfg.get('model') or {}
    for key, parts in PARTS.items():
        if isinstance(model.get(key), dict) and parts['voxels'] in model:
            return dict(parts, encoder=key)
    return None


class LidarFamily(SparseFamily):
    """Models of mmdet3d, or LidarBackbone, with one type of sparse encoder.

    Attributes:
        encoder_type: registered name of the encoder.
    """

    encoder_type: ClassVar[str]

    def claims(self, cfg: Any) -> Claim:
        """See SparseFamily."""
        parts = _parts(cfg)
        known = parts is not None and cfg.model[parts['encoder']].get('type') == self.encoder_type
        return Claim.PART if known else Claim.NO

    def build(self, cfg: Any) -> torch.nn.Module:
        """See SparseFamily."""
        from mmdet3d.models import build_model

        return build_without_weights(cfg, build_model)

    def encoder(self, model: torch.nn.Module) -> torch.nn.Module:
        """See SparseFamily."""
        return model.get_submodule(_path(model))

    def settings(self, cfg: Any, model: torch.nn.Module) -> EncoderSettings:
        """See SparseFamily."""
        parts, encoder = _parts(cfg), self.encoder(model)
        order, shape = axes(encoder), encoder.sparse_shape
        cells = _grid(cfg, parts)
        grid.check_sparse_shape(shape, cells, order, f'model.{parts["encoder"]} and model.{parts["voxels"]}')
        output = grid.dense_shape(encoder, shape, order)
        grid.check_output(cfg.model, output, cells, parts)
        channels = int(cfg.model[parts['encoder']]['in_channels'])
        return EncoderSettings(_path(model), order, tuple(map(int, shape)), channels, output)

    def preprocess_rule(self, cfg: Any) -> VoxelRule:
        """See SparseFamily."""
        parts = _parts(cfg)
        _grid(cfg, parts)
        layer, channels = cfg.model[parts['voxels']], int(cfg.model[parts['encoder']]['in_channels'])
        _check_means(cfg, parts, channels)
        from mmdeploy_ext.inputs.points import VoxelRule

        limit, points = layer.get('max_voxels', 20000), int(layer['max_num_points'])
        limit = int(limit[1] if isinstance(limit, list | tuple) else limit)
        return VoxelRule(
            point_cloud_range=tuple(map(float, layer['point_cloud_range'])),
            voxel_size=tuple(map(float, layer['voxel_size'])),
            max_points=points,
            max_voxels=limit,
            order=self.orders[0],
            in_channels=channels,
            mode='dynamic' if -1 in (points, limit) else 'hard',
        )

    def load(self, model: torch.nn.Module, path: str, weight_layout: str = 'auto') -> LoadReport:
        """See SparseFamily."""
        return load_model(path, model, _path(model), weight_layout=weight_layout)

    def run_encoder(
        self, model: torch.nn.Module, features: np.ndarray, coordinates: np.ndarray
    ) -> np.ndarray:
        """See SparseFamily."""
        with compat.single_thread(), torch.no_grad():
            dense = self.encoder(model)(torch.from_numpy(features), torch.from_numpy(coordinates), 1)
        return dense.numpy()

    def precision_overrides(self) -> Mapping[str, tuple[str, str]]:
        """See SparseFamily."""
        return {}


def _path(model: torch.nn.Module) -> str:
    """Return where a model's sparse encoder is."""
    path = getattr(model, 'encoder_path', None)
    if path:
        return path
    return next(key for key in PARTS if isinstance(getattr(model, key, None), torch.nn.Module))


def _grid(cfg: Any, parts: Mapping[str, str]) -> tuple[int, int, int]:
    """Return the voxels along x, y, z."""
    layer, where = cfg.model[parts['voxels']], f'model.{parts["voxels"]}'
    for key in ('point_cloud_range', 'voxel_size', 'max_num_points'):
        if layer.get(key) is None:
            raise ConfigError(
                f'{where} has no {key}; expected point_cloud_range, voxel_size and max_num_points'
            )
    return grid.grid_size(layer['point_cloud_range'], layer['voxel_size'], where)


def _check_means(cfg: Any, parts: Mapping[str, str], channels: int) -> None:
    """Raise unless a voxel's features are the mean of all its points."""
    means = cfg.model.get(parts['means']) if parts['means'] else None
    if means is None:
        return
    where = f'model.{parts["means"]}'
    if means['type'] not in MEANS:
        raise ConfigError(
            f'{where}.type is {means["type"]}; expected one of {", ".join(MEANS)}: means of points'
        )
    wide = means.get('num_features', 4) if means['type'] == 'HardSimpleVFE' else channels
    if wide != channels:
        raise ConfigError(
            f'{where}.num_features is {wide}, but model.{parts["encoder"]}.in_channels is {channels}'
        )


class BEVFusion(LidarFamily):
    """BEVFusion's LiDAR backbone, x, y, z."""

    name = 'bevfusion'
    encoder_type = 'BEVFusionSparseEncoder'

    def precision_overrides(self) -> Mapping[str, tuple[str, str]]:
        """See SparseFamily. Source: golden ALGORITHM.md 5."""
        return {'conv_input.0': ('fp16', 'int8'), 'conv_out.0': ('int8', 'fp16')}

    def int8_reference(self) -> Int8Reference:
        """See SparseFamily. Source: golden ALGORITHM.md 5: `model.half()` reaches the ranges."""
        return Int8Reference(half_ranges=True)


class PublishedCenterPoint(LidarFamily):
    """The published CenterPoint's encoder, z, y, x."""

    name = 'centerpoint-det3d'
    orders = ('zyx', 'xyz')
    encoder_type = 'CenterPointSparseEncoder'

    def precision_overrides(self) -> Mapping[str, tuple[str, str]]:
        """See SparseFamily. Source: golden ALGORITHM.md 5; the Add of a block has the block's path."""
        return {
            'conv_input.0': ('fp16', 'fp16'),
            'conv1.0.conv1': ('fp16', 'fp16'),
            'conv1.0.conv2': ('fp16', 'fp16'),
            'conv1.0': ('fp16', 'int8'),
            'extra_conv.0': ('int8', 'fp16'),
        }

    def int8_reference(self) -> Int8Reference:
        """See SparseFamily. Source: golden ALGORITHM.md 6: conv_input is folded after calibration."""
        first = ('conv_input.0',)
        return Int8Reference(fp16_folded=first, unfolded_ranges=first, add_method='max')


class SecondEncoder(LidarFamily):
    """mmdet3d's SparseEncoder in any of its detectors: SECOND, CenterPoint, dynamic VoxelNet; z, y, x."""

    name = 'sparse-encoder'
    exports = "mmdet3d's SparseEncoder as (pts_)middle_encoder: SECOND, CenterPoint, VoxelNet (docs/lidar.md)"
    near = ('PointPillars', 'VoxelNet', 'UNet', 'MVX', 'Sparse')
    orders = ('zyx', 'xyz')
    encoder_type = 'SparseEncoder'

    def precision_overrides(self) -> Mapping[str, tuple[str, str]]:
        """See SparseFamily: as BEVFusion, whose encoder this is but for the axes."""
        return {'conv_input.0': ('fp16', 'int8'), 'conv_out.0': ('int8', 'fp16')}


for _family in (BEVFusion(), PublishedCenterPoint(), SecondEncoder()):
    register_family(_family)
