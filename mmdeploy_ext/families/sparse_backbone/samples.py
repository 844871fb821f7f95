"""From the points of a config's sweeps to voxels: where the parts are, and the rule that a file keeps."""

from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.parts import voxel_grid
from mmdeploy_ext.families.parts.voxel_grid import rule_of_layer
from mmdeploy_ext.preprocess.points import VoxelRule

# Where the parts are in `model`, by the key of its sparse encoder.
PARTS = {
    'encoder': dict(voxels='voxel_layer', means='', backbone=''),
    'pts_middle_encoder': dict(voxels='pts_voxel_layer', means='pts_voxel_encoder', backbone='pts_backbone'),
    'middle_encoder': dict(voxels='voxel_layer', means='voxel_encoder', backbone='backbone'),
}
MEANS = ('HardSimpleVFE', 'DynamicSimpleVFE')


def parts_of(cfg: Any) -> dict[str, str] | None:
    """Return the keys of a config's parts, the encoder's under 'encoder'; None without a sparse encoder."""
    model = cfg.get('model') or {}
    for key, parts in PARTS.items():
        if isinstance(model.get(key), dict) and parts['voxels'] in model:
            return dict(parts, encoder=key)
    return None


def voxel_rule(cfg: Any, order: str) -> VoxelRule:
    """Return how points become voxels, coordinates in an order.

    Raises:
        ConfigError: a key is missing, or a voxel's features are not the mean of its points.
    """
    parts = parts_of(cfg)
    cells_of(cfg, parts)
    layer, channels = cfg.model[parts['voxels']], int(cfg.model[parts['encoder']]['in_channels'])
    _check_means(cfg, parts, channels)
    return rule_of_layer(layer, channels, order)


def cells_of(cfg: Any, parts: Mapping[str, str]) -> tuple[int, int, int]:
    """Return the voxels along x, y, z."""
    layer, where = cfg.model[parts['voxels']], f'model.{parts["voxels"]}'
    for key in ('point_cloud_range', 'voxel_size', 'max_num_points'):
        if layer.get(key) is None:
            raise ConfigError(
                f'{where} has no {key}; expected point_cloud_range, voxel_size and max_num_points'
            )
    return voxel_grid.grid_size(layer['point_cloud_range'], layer['voxel_size'], where)


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
