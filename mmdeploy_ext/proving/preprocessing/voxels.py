"""Compares voxels made by a file's rule and by mmcv's `Voxelization`.

Glossary: P points of D values, N voxels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import one_line
from mmdeploy_ext.runtime.preprocess import points
from mmdeploy_ext.spec.results import PreprocessingDifference, PreprocessingResult

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


VOXEL_SOURCE = "mmcv's Voxelization of the config"
GENERATED_SWEEP = 'generated sweep'
FEATURE_RTOL = 1e-5
"""Tolerance of features, relative to the largest of a column: sums of points in another order."""
MAX_GENERATED_VOXELS = 200_000
"""Most voxels of the generated sweep."""


def compare_voxels(
    layer: nn.Module, order: str, in_channels: int, rule: Mapping[str, Any]
) -> PreprocessingResult:
    """Compare the voxel rule in a file with the voxelisation of its model, on a generated sweep.

    Args:
        layer: mmcv's `Voxelization`.
        order: axes of coordinates that the encoder takes, 'xyz' or 'zyx'.
        in_channels: D.
        rule: as `VoxelRule.to_json` returns it.
    """
    result = PreprocessingResult((), 'sweep', source=VOXEL_SOURCE)
    try:
        expected = _layer_rule(layer, order, in_channels)
        differences = [
            PreprocessingDifference('voxel rule', name, str(rule.get(name)), str(value))
            for name, value in expected.items()
            if _as_floats(rule.get(name)) != value
        ]
        if not differences:
            sweep = _generated_sweep(expected)
            voxels = points.voxelise(sweep, points.VoxelRule.from_json(rule))
            differences += _differing_voxels(voxels, _layer_voxels(layer, sweep, order))
    except Exception as error:  # mmcv and a damaged rule raise what they like
        return dataclasses.replace(result, error=f'{type(error).__name__}: {one_line(error)[:300]}')
    return dataclasses.replace(result, samples=(GENERATED_SWEEP,), differences=tuple(differences))


def _as_floats(value: Any) -> Any:
    return [float(entry) for entry in value] if isinstance(value, list | tuple) else value


def _layer_rule(layer: nn.Module, order: str, in_channels: int) -> dict[str, Any]:
    limits = int(layer.max_num_points), int(layer.max_voxels[1])
    return dict(
        point_cloud_range=_as_floats(tuple(layer.point_cloud_range)),
        voxel_size=_as_floats(tuple(layer.voxel_size)),
        max_points=limits[0],
        max_voxels=limits[1],
        order=order,
        in_channels=in_channels,
        mode='dynamic' if -1 in limits else 'hard',
    )


def _generated_sweep(rule: Mapping[str, Any]) -> np.ndarray:
    rng = np.random.default_rng(0)
    low, high = np.array(rule['point_cloud_range']).reshape(2, 3)
    size = np.array(rule['voxel_size'])
    grid = np.floor((high - low) / size + 0.5).astype(np.int64)
    limit = rule['max_voxels'] if rule['mode'] == 'hard' else 1000
    count = min(limit + limit // 20 + 10, int(np.prod(grid)) // 2 + 1, MAX_GENERATED_VOXELS)
    cells = rng.permutation(np.unique(rng.integers(0, int(np.prod(grid)), 4 * count)))[:count]
    full = np.repeat(cells[: count // 50 + 2], 2 * max(rule['max_points'], 4))
    first = rng.permutation(np.concatenate([cells[: count // 2], full]))
    cells = np.concatenate([first, cells[count // 2 :]])
    positions = np.stack(np.unravel_index(cells, grid), 1) + rng.uniform(0.2, 0.8, (len(cells), 3))
    edges = np.tile((low + high) / 2 + 0.3 * size, (12, 1))
    for axis in range(3):  # first, since voxels beyond the limit do not count
        rows = slice(4 * axis, 4 * axis + 4)
        edges[rows, axis] = low[axis], high[axis], low[axis] - size[axis], high[axis] + size[axis]
    sweep = rng.uniform(0.1, 1, (len(edges) + len(positions), rule['in_channels']))
    sweep[:, :3] = np.concatenate([edges, low + size * positions])
    return sweep.astype(np.float32)


def _layer_voxels(layer: nn.Module, sweep: np.ndarray, order: str) -> tuple[np.ndarray, np.ndarray]:
    import torch

    outputs = layer(torch.from_numpy(sweep))
    if isinstance(outputs, tuple):
        voxels, cells, counts = (tensor.numpy() for tensor in outputs)
        means = voxels.sum(1) / counts[:, None]
    else:  # dynamic: the cell of each point, -1 outside
        cells = outputs.numpy()
        inside = (cells >= 0).all(1)
        cells, rows, counts = np.unique(cells[inside], axis=0, return_inverse=True, return_counts=True)
        sums = np.zeros((len(cells), sweep.shape[1]))
        np.add.at(sums, rows.reshape(-1), sweep[inside])
        means = sums / counts[:, None]
    cells = cells if order == 'zyx' else cells[:, ::-1]  # mmcv counts z, y, x
    return means.astype(np.float32), np.pad(cells, ((0, 0), (1, 0)))


def _differing_voxels(
    got: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]
) -> Iterator[PreprocessingDifference]:
    rows = (np.lexsort(coordinates.T) for _, coordinates in (got, expected))
    got, expected = (
        tuple(array[order] for array in side) for side, order in zip((got, expected), rows, strict=True)
    )
    if not np.array_equal(got[1], expected[1]):
        sides = (f'{len(side[1])} voxels, the last {side[1][-1:].tolist()}' for side in (got, expected))
        yield PreprocessingDifference(GENERATED_SWEEP, 'coordinates', *sides)
    elif got[0].shape != expected[0].shape:
        sides = (str(side[0].shape) for side in (got, expected))
        yield PreprocessingDifference(GENERATED_SWEEP, 'features', *sides)
    else:
        gaps = np.abs(got[0] - expected[0])
        wrong = ~(gaps <= FEATURE_RTOL * np.abs(expected[0]).max(0, initial=0))
        if wrong.any():
            index = tuple(int(axis) for axis in np.argwhere(wrong)[0])
            text = f'{got[0][index]:.7g} at {list(index)} ({wrong.sum()} of {wrong.size} values differ)'
            yield PreprocessingDifference(GENERATED_SWEEP, 'features', text, f'{expected[0][index]:.7g}')
