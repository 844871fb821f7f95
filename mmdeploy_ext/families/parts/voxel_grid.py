"""The grid of voxels of a config: the rule by which points become voxels, and its size."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.preprocess.points import VoxelRule


def rule_of_layer(layer: Mapping[str, Any], channels: int, order: str) -> VoxelRule:
    """Return the rule of `layer`, the arguments of mmcv's `Voxelization`, for points of `channels` values.

    `order` is the order of axes in the coordinates of voxels, 'xyz' or 'zyx'. Of two limits of voxels the
    second one counts, that of tests; without any it is 20,000, mmcv's default. If a limit is -1 the mode is
    'dynamic': voxels have all their points, and there are as many as there are. ConfigError: a number is
    missing, or they are those of no rule.
    """
    missing = [key for key in ('point_cloud_range', 'voxel_size', 'max_num_points') if key not in layer]
    if missing:
        raise ConfigError(f'the layer of voxels has no {", ".join(missing)}')
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


def grid_size(
    point_cloud_range: Sequence[float], voxel_size: Sequence[float], key: str
) -> tuple[int, int, int]:
    """Return the number of voxels along x, y, z.

    The range is the least corner, then the greatest, metres, as the size is, x y z each; `key` is that of the
    config.

    Raises:
        ConfigError: not 6 and 3 finite numbers, a range or sizes that are not positive, or voxels that do not
            fill the range.
    """
    values = (*point_cloud_range, *voxel_size)
    is_finite = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    if len(point_cloud_range) != 6 or len(voxel_size) != 3 or not is_finite:
        raise ConfigError(
            f'{key}: point_cloud_range={list(point_cloud_range)} and voxel_size={list(voxel_size)}; '
            f'expected 6 and 3 finite numbers'
        )
    cells = []
    for axis, low, high, size in zip(
        'xyz', point_cloud_range[:3], point_cloud_range[3:], voxel_size, strict=True
    ):
        if size <= 0 or high <= low:
            raise ConfigError(
                f'{key}: range {low} to {high} and voxel size {size} along {axis}; expected both > 0'
            )
        count = (high - low) / size
        if abs(count - round(count)) > 1e-3:
            raise ConfigError(
                f'{key}: point_cloud_range along {axis}, {low} to {high} m, is {count:.3f} voxels of '
                f'{size} m (voxel_size); expected a whole number'
            )
        cells.append(round(count))
    return tuple(cells)
