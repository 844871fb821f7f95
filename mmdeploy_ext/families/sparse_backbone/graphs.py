"""The sparse encoder of a config and of a model, its voxels, and checks of its grid.

Glossary: C channels, X, Y, Z cells of the dense output along the axes, H, W its rows and columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.common.lidar_parts import grid_size, rule_of_layer
from mmdeploy_ext.families.sparse import EncoderSettings
from mmdeploy_ext.spec.preparation import VoxelRule
from mmdeploy_ext.upstream.models.sparse_backbone.model import axes

PARTS = {
    'encoder': dict(voxels='voxel_layer', means='', backbone=''),
    'pts_middle_encoder': dict(voxels='pts_voxel_layer', means='pts_voxel_encoder', backbone='pts_backbone'),
    'middle_encoder': dict(voxels='voxel_layer', means='voxel_encoder', backbone='backbone'),
}
MEANS = ('HardSimpleVFE', 'DynamicSimpleVFE')


def parts_of(cfg: Any) -> dict[str, str] | None:
    model = cfg.get('model') or {}
    for key, parts in PARTS.items():
        if isinstance(model.get(key), dict) and parts['voxels'] in model:
            return dict(parts, encoder=key)
    return None


def encoder_type(cfg: Any) -> str | None:
    parts = parts_of(cfg)
    return None if parts is None else cfg.model[parts['encoder']].get('type')


def voxel_rule(cfg: Any, order: str) -> VoxelRule:
    parts = parts_of(cfg)
    if parts is None:
        pairs = (f'model.{key} with model.{entry["voxels"]}' for key, entry in PARTS.items())
        raise ConfigError(f'no sparse encoder with a voxel layer; expected {", or ".join(pairs)}')
    voxels_of(cfg, parts)
    encoder_cfg, means = cfg.model[parts['encoder']], cfg.model.get(parts['means'])
    if 'in_channels' not in encoder_cfg:
        raise ConfigError(
            f'model.{parts["encoder"]} has no in_channels; expected the number of values per voxel'
        )
    if means is not None and means.get('type') not in MEANS:
        raise ConfigError(
            f'model.{parts["means"]}.type is {means.get("type")}; expected one of {", ".join(MEANS)}, '
            'which compute the mean of the points'
        )
    return rule_of_layer(cfg.model[parts['voxels']], int(encoder_cfg['in_channels']), order)


def voxels_of(cfg: Any, parts: Mapping[str, str]) -> tuple[int, int, int]:
    return grid_size(cfg.model[parts['voxels']] or {}, f'model.{parts["voxels"]}')


def encoder_path(model: nn.Module) -> str:
    path = getattr(model, 'encoder_path', None)
    if path:
        return path
    return next(key for key in PARTS if isinstance(getattr(model, key, None), nn.Module))


def encoder(model: nn.Module) -> nn.Module:
    return model.get_submodule(encoder_path(model))


def settings(cfg: Any, model: nn.Module) -> EncoderSettings:
    parts, module = parts_of(cfg), encoder(model)
    order, shape = axes(module), module.sparse_shape
    voxels = voxels_of(cfg, parts)
    _check_sparse_shape(shape, voxels, order, f'model.{parts["encoder"]} and model.{parts["voxels"]}')
    output = dense_shape(module, shape, order)
    _check_channels(cfg.model, output, parts)
    channels = int(cfg.model[parts['encoder']]['in_channels'])
    return EncoderSettings(encoder_path(model), order, tuple(map(int, shape)), channels, output)


def dense_shape(module: nn.Module, sparse_shape: Sequence[int], order: str) -> tuple[int, int, int, int]:
    """Return (1, C * Z, H, W) of an encoder that runs its convolutions in registration order."""
    sizes = [int(size) for size in sparse_shape]
    channels = 0
    for layer in module.modules():
        if type(layer).__name__ in ('SubMConv3d', 'SparseConv3d'):
            channels = layer.out_channels
        if type(layer).__name__ == 'SparseConv3d':
            steps = zip(sizes, layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
            sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in steps]
    depth = sizes[order.index('z')]
    rows, columns = (size for axis, size in zip(order, sizes, strict=True) if axis != 'z')
    return 1, channels * depth, rows, columns


def _check_sparse_shape(
    sparse_shape: Sequence[int], grid: tuple[int, int, int], order: str, name: str
) -> None:
    if len(sparse_shape) != 3:
        raise ConfigError(f'{name}: sparse_shape={list(sparse_shape)}, expected 3 sizes in order {order}')
    for axis, cells in zip('xyz', grid, strict=True):
        size = int(sparse_shape[order.index(axis)])
        allowed = (cells + 1, cells) if axis == 'z' else (cells,)
        if size not in allowed:
            expected = [grid['xyz'.index(letter)] + (letter == 'z') for letter in order]
            raise ConfigError(
                f'{name}: sparse_shape={list(sparse_shape)} has {size} cells along {axis}, but '
                f'point_cloud_range over voxel_size gives {cells}; expected sparse_shape={expected} ({order})'
            )


def _check_channels(model_cfg: Any, shape: tuple[int, int, int, int], parts: Mapping[str, str]) -> None:
    channels = (model_cfg.get(parts['backbone']) or {}).get('in_channels')
    if isinstance(channels, int) and channels != shape[1]:
        raise ConfigError(
            f'model.{parts["encoder"]} returns {shape}: {shape[1]} channels (channels times remaining '
            f'height), but model.{parts["backbone"]}.in_channels is {channels}; sparse_shape, '
            'encoder_paddings or in_channels is wrong'
        )
