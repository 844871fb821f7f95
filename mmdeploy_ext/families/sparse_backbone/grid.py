"""Checks of grids that a config states more than once: range over voxel size, sparse_shape, dense output."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from mmdeploy_ext.core.errors import ConfigError


def check_sparse_shape(
    sparse_shape: Sequence[int], grid: tuple[int, int, int], order: str, where: str
) -> None:
    """Raise unless an encoder's grid is that of its voxels; along z it may have one more, as SECOND's has.

    The sparse shape has axes in `order`, 'xyz' or 'zyx', the grid x, y, z. The ConfigError names the axis.
    """
    if len(sparse_shape) != 3:
        raise ConfigError(f'{where}: sparse_shape={list(sparse_shape)}, expected 3 sizes in order {order}')
    for axis, cells in zip('xyz', grid, strict=True):
        size = int(sparse_shape[order.index(axis)])
        allowed = (cells + 1, cells) if axis == 'z' else (cells,)
        if size not in allowed:
            expected = [grid['xyz'.index(name)] + (name == 'z') for name in order]
            raise ConfigError(
                f'{where}: sparse_shape={list(sparse_shape)} has {size} cells along {axis}, but '
                f'point_cloud_range over voxel_size gives {cells}; expected sparse_shape={expected} ({order})'
            )


def dense_shape(encoder: nn.Module, sparse_shape: Sequence[int], order: str) -> tuple[int, int, int, int]:
    """Return (1, C * Z, H, W) of an encoder whose convolutions run in the order in which it registers them.

    H, W are X, Y in order 'xyz' and Y, X in order 'zyx'.
    """
    sizes, channels = [int(size) for size in sparse_shape], 0
    for part in encoder.modules():
        if type(part).__name__ in ('SubMConv3d', 'SparseConv3d'):
            channels = part.out_channels
        if type(part).__name__ == 'SparseConv3d':
            steps = zip(sizes, part.kernel_size, part.stride, part.padding, part.dilation, strict=True)
            sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in steps]
    depth = sizes[order.index('z')]
    rows, columns = (size for axis, size in zip(order, sizes, strict=True) if axis != 'z')
    return 1, channels * depth, rows, columns


def check_output(
    model: Any, shape: tuple[int, int, int, int], grid: tuple[int, int, int], keys: dict
) -> None:
    """Raise ConfigError unless the rest of a config agrees with the dense output (1, C * Z, H, W).

    These are output_shape, the 2D backbone's in_channels, grid_size and out_size_factor of its `model`.
    `grid` has voxels along x, y, z; `keys` are those of encoder and backbone.
    """
    encoder = f'model.{keys["encoder"]}'
    promised = model.get('output_shape')
    if promised is not None and tuple(promised) != shape:
        raise ConfigError(f'{encoder} gives {shape}, but model.output_shape is {tuple(promised)}')
    backbone = model.get(keys['backbone']) or {}
    channels = backbone.get('in_channels')
    if isinstance(channels, int) and channels != shape[1]:
        raise ConfigError(
            f'{encoder} gives {shape}: {shape[1]} channels (its channels times the height that is left), but '
            f'model.{keys["backbone"]}.in_channels is {channels}; sparse_shape, encoder_paddings or '
            f'in_channels is wrong'
        )
    for name in ('train_cfg', 'test_cfg'):
        settings = (model.get(name) or {}).get('pts') or {}
        stated = settings.get('grid_size')
        if stated is not None and list(stated)[:2] != list(grid[:2]):
            raise ConfigError(
                f'model.{name}.pts.grid_size is {list(stated)}, but point_cloud_range over voxel_size gives '
                f'{list(grid)}'
            )
        factor = settings.get('out_size_factor')
        if factor and backbone and {side * factor for side in shape[2:]} != set(grid[:2]):
            raise ConfigError(
                f'model.{name}.pts.out_size_factor is {factor}, but {encoder} makes {list(shape[2:])} cells '
                f'of {list(grid[:2])} voxels'
            )
