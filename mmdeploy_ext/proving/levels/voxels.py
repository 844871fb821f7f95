"""Level 1 of models of points: the rule in a file makes the voxels that mmcv's layer of the model makes.

The reference is mmcv's `Voxelization` as the config builds it. Nothing of `mmdeploy_ext/preprocess` makes its
points or its voxels: a fault in it would be on both sides.

Glossary: P points of D values, N voxels, M points that count in a voxel.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.preprocess import points as inputs
from mmdeploy_ext.preprocess.points import VoxelRule
from mmdeploy_ext.proving.results import PreprocessingDifference, PreprocessingResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

SOURCE = "mmcv's Voxelization of the config"
SWEEP = 'generated sweep'
FEATURE_RTOL = 1e-5
"""Of the largest feature of a column: sums of the points of a voxel in another order."""
ROOM = 200_000
"""Voxels with points, at most, where a config has no limit or a very large one."""


def compare_voxels(
    layer: nn.Module, order: str, in_channels: int, rule: Mapping[str, Any]
) -> PreprocessingResult:
    """Compare the voxel rule in a file with the voxelisation of its model.

    Args:
        layer: mmcv's `Voxelization` of the model, in evaluation mode.
        order: of the axes of coordinates that the model's encoder takes, 'xyz' or 'zyx'.
        in_channels: D.
        rule: entry `voxels` of the file's metadata.
    """
    result = PreprocessingResult((), 'sweep', source=SOURCE)
    try:
        expected = layer_values(layer, order, in_channels)
        wrong = [
            PreprocessingDifference('voxel rule', name, str(rule.get(name)), str(wanted))
            for name, wanted in expected.items()
            if plain(rule.get(name)) != wanted
        ]
        if not wrong:
            points = sweep_of(expected)
            got = inputs.voxelise(points, VoxelRule.from_json(rule))
            wrong += differences(got, layer_voxels(layer, points, order))
    except Exception as error:  # mmcv and a damaged rule raise what they like
        return dataclasses.replace(result, error=f'{type(error).__name__}: {one_line(error)[:300]}')
    return dataclasses.replace(result, samples=(SWEEP,), differences=tuple(wrong))


def plain(value: Any) -> Any:
    """Return a list or tuple as a list of floats, anything else as it is."""
    return [float(entry) for entry in value] if isinstance(value, list | tuple) else value


def layer_values(layer: nn.Module, order: str, in_channels: int) -> dict[str, Any]:
    """Return what a voxel rule has to hold, by the attributes of mmcv's layer."""
    limits = int(layer.max_num_points), int(layer.max_voxels[1])
    return dict(
        point_cloud_range=plain(tuple(layer.point_cloud_range)),
        voxel_size=plain(tuple(layer.voxel_size)),
        max_points=limits[0],
        max_voxels=limits[1],
        order=order,
        in_channels=in_channels,
        mode='dynamic' if -1 in limits else 'hard',
    )


def sweep_of(values: Mapping[str, Any]) -> np.ndarray:
    """Return points (P, D) float32 that reach what a rule of such values decides.

    On both edges of every axis and beyond them; more voxels than count, where the grid has room; some of more
    points than count. Points inside are away from the faces of voxels, where the last bit of float32 decides.
    """
    rng = np.random.default_rng(0)
    low, high = np.array(values['point_cloud_range']).reshape(2, 3)
    size = np.array(values['voxel_size'])
    grid = np.rint((high - low) / size).astype(np.int64)
    limit = values['max_voxels'] if values['mode'] == 'hard' else 1000
    count = min(limit + limit // 20 + 10, int(np.prod(grid)) // 2 + 1, ROOM)
    cells = rng.permutation(np.unique(rng.integers(0, int(np.prod(grid)), 4 * count)))[:count]
    full = np.repeat(cells[: count // 50 + 2], 2 * max(values['max_points'], 4))
    first = rng.permutation(np.concatenate([cells[: count // 2], full]))
    cells = np.concatenate([first, cells[count // 2 :]])
    places = np.stack(np.unravel_index(cells, grid), 1) + rng.uniform(0.2, 0.8, (len(cells), 3))
    edges = np.tile((low + high) / 2 + 0.3 * size, (12, 1))
    for axis in range(3):  # first, since voxels beyond the limit do not count
        rows = slice(4 * axis, 4 * axis + 4)
        edges[rows, axis] = low[axis], high[axis], low[axis] - size[axis], high[axis] + size[axis]
    points = rng.uniform(0.1, 1, (len(edges) + len(places), values['in_channels']))
    points[:, :3] = np.concatenate([edges, low + size * places])
    return points.astype(np.float32)


def layer_voxels(layer: nn.Module, points: np.ndarray, order: str) -> tuple[np.ndarray, np.ndarray]:
    """Return means (N, D) float32 and coordinates (N, 4), axes in an order, as mmcv's layer makes them."""
    import torch

    made = layer(torch.from_numpy(points))
    if isinstance(made, tuple):
        voxels, cells, counts = (tensor.numpy() for tensor in made)
        means = voxels.sum(1) / counts[:, None]
    else:  # dynamic: the cell of each point, -1 outside
        cells = made.numpy()
        inside = (cells >= 0).all(1)
        cells, rows, counts = np.unique(cells[inside], axis=0, return_inverse=True, return_counts=True)
        sums = np.zeros((len(cells), points.shape[1]))
        np.add.at(sums, rows.reshape(-1), points[inside])
        means = sums / counts[:, None]
    cells = cells if order == 'zyx' else cells[:, ::-1]  # mmcv counts z, y, x
    return means.astype(np.float32), np.pad(cells, ((0, 0), (1, 0)))


def differences(
    got: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]
) -> Iterator[PreprocessingDifference]:
    """Yield what differs of voxels; their order does not count, which no sparse network depends on."""
    rows = (np.lexsort(coordinates.T) for _, coordinates in (got, expected))
    got, expected = (
        tuple(array[order] for array in side) for side, order in zip((got, expected), rows, strict=True)
    )
    if not np.array_equal(got[1], expected[1]):
        sides = (f'{len(side[1])} voxels, the last {side[1][-1:].tolist()}' for side in (got, expected))
        yield PreprocessingDifference(SWEEP, 'coordinates', *sides)
    elif got[0].shape != expected[0].shape:
        yield PreprocessingDifference(SWEEP, 'features', *(str(side[0].shape) for side in (got, expected)))
    else:
        gaps = np.abs(got[0] - expected[0])
        wrong = ~(gaps <= FEATURE_RTOL * np.abs(expected[0]).max(0, initial=0))
        if wrong.any():
            place = tuple(int(axis) for axis in np.argwhere(wrong)[0])
            text = f'{got[0][place]:.7g} at {list(place)} ({wrong.sum()} of {wrong.size} values differ)'
            yield PreprocessingDifference(SWEEP, 'features', text, f'{expected[0][place]:.7g}')
