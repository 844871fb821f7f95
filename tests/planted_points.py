"""Faults on the way from a sweep to voxels and pillars, of every family of points."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from planting import arguments, planted, result, settings

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS = 'mmdeploy_ext.preprocess.points'
PLACES = dict(
    centerpoint_rotate=f'{POINTS}:voxelise',
    second=f'{POINTS}:voxelise',
    bevfusion_varied=f'{POINTS}:voxelise',
    pillars=f'{POINTS}:pillars',
    sparse_portable=f'{POINTS}:voxelise',
    sparse_libspconv=f'{POINTS}:voxelise',
)
"""Toy -> what makes its voxels."""
RULE = 'mmdeploy_ext.families.parts.voxel_grid:rule_of_layer'


def _planted(name: str, make: Callable, toys: str = ' '.join(PLACES)) -> None:
    for toy in toys.split():
        planted(name, toy, (PLACES[toy], make))


def _of_points(change: Callable) -> Callable:
    """Return a fault that changes the points (P, D) by the rule."""
    return arguments(lambda points, rule: (change(np.array(points), rule), rule))


def _of_rule(**changes: Callable) -> Callable:
    return arguments(
        lambda points, rule: (
            points,
            dataclasses.replace(rule, **{key: change(getattr(rule, key)) for key, change in changes.items()}),
        )
    )


def _moved(points: np.ndarray, metres: Any) -> np.ndarray:
    points[:, :3] += np.float32(metres)
    return points


def _columns(points: np.ndarray, columns: Any, factor: float) -> np.ndarray:
    points[:, columns] *= np.float32(factor)
    return points


def _with_upper_edge(points: np.ndarray, rule: Any) -> np.ndarray:
    high = np.float32(rule.point_cloud_range[3:])
    inside = high - np.float32(rule.voxel_size) / 4  # the next float32 below may be in the cell of the edge
    points[:, :3] = np.where(points[:, :3] == high, inside, points[:, :3])
    return points


def _without_lower_edge(points: np.ndarray, rule: Any) -> np.ndarray:
    return points[(points[:, :3] > np.float32(rule.point_cloud_range[:3])).all(1)]


def _in_range(points: np.ndarray, rule: Any, axes: tuple[int, ...]) -> np.ndarray:
    """Return points whose places along some axes are moved into the range."""
    low, high = np.float32(rule.point_cloud_range).reshape(2, 3)
    for axis in axes:
        points[:, axis] = points[:, axis].clip(low[axis], np.nextafter(high[axis], low[axis]))
    return points


_planted('a point less per voxel', _of_rule(max_points=lambda count: count - 1))
_planted('a voxel less per sweep', _of_rule(max_voxels=lambda count: count - 1))
_planted('as many voxels as there are', _of_rule(max_voxels=lambda count: 10 * count))
_planted('the last points of a voxel', _of_points(lambda points, rule: points[::-1]))
_planted('cells are rounded', _of_points(lambda points, rule: _moved(points, np.array(rule.voxel_size) / 2)))
_planted('the upper edge of the range is inside', _of_points(_with_upper_edge))
_planted('the lower edge of the range is outside', _of_points(_without_lower_edge))
_planted('points of any height', _of_points(lambda points, rule: _in_range(points, rule, (2,))))
_planted(
    'points are moved into the range', _of_points(lambda points, rule: _in_range(points, rule, (0, 1, 2)))
)
_planted('intensities are divided by 255', _of_points(lambda points, _: _columns(points, 3, 1 / 255)))
_planted('the last column is zero', _of_points(lambda points, _: _columns(points, -1, 0)))
_planted('points in float16', _of_points(lambda points, _: points.astype(np.float16).astype(np.float32)))
_planted('points in centimetres', _of_points(lambda points, _: _columns(points, slice(3), 100)))
_planted(
    'x and y of voxels have changed places',
    result(
        lambda found, points, rule: (
            *found[:-1],
            found[-1][:, [0, 2, 1, 3] if rule.order == 'xyz' else [0, 1, 3, 2]],
        )
    ),
    'second bevfusion_varied pillars sparse_portable sparse_libspconv',
)


def _padded_mean(original: Callable) -> Callable:
    from mmdeploy_ext.preprocess.points import pillars

    def voxelise(points: np.ndarray, rule: Any) -> tuple[np.ndarray, np.ndarray]:
        return pillars(points, rule)[0].sum(1) / np.float32(rule.max_points), original(points, rule)[1]

    return voxelise


_planted(
    'the mean of all rows of a voxel',
    _padded_mean,
    'centerpoint_rotate second bevfusion_varied sparse_portable sparse_libspconv',
)
_planted(
    'all rows of a pillar count',
    result(lambda found, points, rule: (found[0], np.full_like(found[1], rule.max_points), found[2])),
    'pillars',
)


def _repeated(found: tuple, *_: Any) -> tuple:
    voxels, counts, coordinates = found
    empty = np.arange(voxels.shape[1]) >= counts[:, None]
    return np.where(empty[..., None], voxels[:, :1], voxels), counts, coordinates


_planted('empty rows of a pillar repeat its first point', result(_repeated), 'pillars')
planted(
    'as many voxels as in training',
    'centerpoint_rotate second pillars bevfusion_varied',
    (RULE, lambda original: lambda layer, *rest: original(_of_training(layer), *rest)),
    shared=True,
)


def _of_training(layer: Any) -> dict[str, Any]:
    return dict(layer, max_voxels=layer['max_voxels'][0])


planted(
    'a voxel of another height in the metadata',
    'centerpoint_rotate second pillars bevfusion_varied',
    (RULE, settings(voxel_size=lambda size: (*size[:2], 2 * size[2]))),
    shared=True,
)
