"""The grid of voxels of a config: rule and size."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.spec.preparation import VoxelRule

NEEDED = ('point_cloud_range', 'voxel_size', 'max_num_points')


def rule_of_layer(layer: Mapping[str, Any], channels: int, order: str) -> VoxelRule:
    """Return the rule of mmcv's `Voxelization` arguments, for points of `channels` values.

    Of two limits of voxels the second (of tests) counts; mmcv's default is 20,000.
    """
    if missing := [name for name in NEEDED if layer.get(name) is None]:
        raise ConfigError(f'the voxel layer has no {", ".join(missing)}')
    max_voxels, max_points = layer.get('max_voxels', 20000), int(layer['max_num_points'])
    max_voxels = int(max_voxels[1] if isinstance(max_voxels, list | tuple) else max_voxels)
    return VoxelRule(
        point_cloud_range=tuple(map(float, layer['point_cloud_range'])),
        voxel_size=tuple(map(float, layer['voxel_size'])),
        max_points=max_points,
        max_voxels=max_voxels,
        order=order,
        in_channels=channels,
        mode='dynamic' if -1 in (max_points, max_voxels) else 'hard',
    )


def grid_size(layer: Mapping[str, Any], key: str) -> tuple[int, int, int]:
    if missing := [name for name in NEEDED if layer.get(name) is None]:
        raise ConfigError(f'{key} has no {", ".join(missing)}')
    limits, sizes = layer['point_cloud_range'], layer['voxel_size']
    counts = np.subtract(limits[3:], limits[:3]) / sizes
    cells = np.rint(counts).astype(int)
    if (np.abs(counts - cells) > 1e-3).any() or min(cells) < 1:
        raise ConfigError(
            f'{key}: point_cloud_range={list(limits)} has {counts.round(3).tolist()} voxels of '
            f'voxel_size={list(sizes)} along x, y, z; expected whole numbers'
        )
    return tuple(cells.tolist())
