"""Voxels of a sweep, with their points or the mean of them.

Source: mmcv 1.7.2 `Voxelization` on CPU (hard) and mmdet3d 1.0.0rc6 `HardSimpleVFE`, `DynamicSimpleVFE`
(dynamic). P points of D values, N voxels of up to M points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from mmdeploy_ext.base.config import test_pipeline
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.runtime.preprocess.fusion import AGE, PastSweeps
from mmdeploy_ext.spec.preparation import VoxelRule

# Reading point files for a model.


@dataclasses.dataclass(frozen=True)
class PointRule:
    """How files become the points that a model takes.

    Attributes:
        load_dim: values per point in a file.
        use_dim: columns that the model takes.
        past: merging of past sweeps of infos, or None.
        past_dim: columns after merging; None keeps all.
    """

    load_dim: int
    use_dim: tuple[int, ...]
    past: PastSweeps | None = None
    past_dim: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for columns, width, step in (
            (self.use_dim, self.load_dim, 'LoadPointsFromFile'),
            (self.past_dim or (), len(self.use_dim), 'LoadPointsFromMultiSweeps'),
        ):
            if columns and not 0 <= min(columns) <= max(columns) < width:
                raise ConfigError(f'{step}: use_dim={list(columns)}; expected columns of {width} values')

    @classmethod
    def from_pipeline(cls, steps: list[Mapping[str, Any]], in_channels: int) -> PointRule:
        """Rule of LoadPointsFromFile and LoadPointsFromMultiSweeps, else `in_channels` values per point."""
        step_of = {step.get('type'): step for step in steps}
        file_step = step_of.get('LoadPointsFromFile')
        if file_step is None:
            return cls(in_channels, tuple(range(in_channels)))
        load_dim, use_dim = int(file_step.get('load_dim', 6)), _columns(file_step.get('use_dim', [0, 1, 2]))
        past_step = step_of.get('LoadPointsFromMultiSweeps')
        if past_step is None:
            return cls(load_dim, use_dim)
        if (column := past_step.get('time_dim', AGE)) != AGE:
            raise ConfigError(f'LoadPointsFromMultiSweeps: time_dim={column}; expected {AGE}')
        if (past_dim := int(past_step.get('load_dim', 5))) != load_dim:
            raise ConfigError(
                f'LoadPointsFromMultiSweeps: load_dim={past_dim}; expected {load_dim} as in '
                'LoadPointsFromFile, since all files have one format'
            )
        past = PastSweeps(
            max_sweeps=int(past_step.get('sweeps_num', 10)),
            pad_empty=bool(past_step.get('pad_empty_sweeps', False)),
            remove_close=bool(past_step.get('remove_close', False)),
        )
        return cls(load_dim, use_dim, past, _columns(past_step.get('use_dim', [0, 1, 2, 4])))


def point_rule(cfg: Any, in_channels: int) -> PointRule:
    """`PointRule.from_pipeline` of a config's test pipeline."""
    try:
        steps = test_pipeline(cfg)
    except ConfigError:
        steps = []
    return PointRule.from_pipeline(steps, in_channels)


def _columns(value: int | list[int]) -> tuple[int, ...]:
    return tuple(range(value)) if isinstance(value, int) else tuple(value)


MODES = ('hard', 'dynamic')
ORDERS = ('xyz', 'zyx')


def voxelise(points: np.ndarray, rule: VoxelRule) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the points of each voxel, (N, D) float32, and coordinates (N, 4) int32 with sample 0 first.

    `points` is (P, D) with x, y, z in metres first, LiDAR frame. Voxels follow their first points, or z, y, x
    if 'dynamic'. DataError: another width, or not finite.
    """
    is_hard = rule.mode == 'hard'
    loops, points, coordinates, grid = _buffers(points, rule)
    features = np.zeros((len(coordinates), rule.in_channels), np.float32)
    counts = np.zeros(len(coordinates), np.int32)
    max_points = rule.max_points if is_hard else np.iinfo(np.int32).max
    voxels = loops.collect(points, *grid, coordinates, features, counts, max_points)
    features, axes = features[:voxels] / counts[:voxels, None].astype(np.float32), coordinates[:voxels]
    if not is_hard:
        rows = np.lexsort(axes.T)
        features, axes = features[rows], axes[rows]
    return features, _ordered(axes, rule)


def pillars(points: np.ndarray, rule: VoxelRule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, M, D) float32, zero-padded, their number (N,) int32 and coordinates (N, 4) int32.

    Mode 'hard'; input as in `voxelise`.
    """
    loops, points, coordinates, grid = _buffers(points, rule)
    voxel_points = np.zeros((len(coordinates), rule.max_points, rule.in_channels), np.float32)
    counts = np.zeros(len(coordinates), np.int32)
    voxels = loops.gather(points, *grid, coordinates, voxel_points, counts)
    return voxel_points[:voxels], counts[:voxels], _ordered(coordinates[:voxels], rule)


def assigned(points: np.ndarray, rule: VoxelRule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points in range (n, D) float32, voxel row of each (n,) int32, and coordinates (N, 4) int32.

    Mode 'dynamic'; input as in `voxelise`.
    """
    loops, points, coordinates, grid = _buffers(points, rule)
    rows = np.empty(len(points), np.int32)
    voxels = loops.assign(points, *grid, coordinates, rows)
    in_range = rows >= 0
    return points[in_range], rows[in_range], _ordered(coordinates[:voxels], rule)


def _buffers(
    points: np.ndarray, rule: VoxelRule
) -> tuple[ModuleType, np.ndarray, np.ndarray, tuple[Any, ...]]:
    from mmdeploy_ext.runtime.preprocess import voxel_hash

    points = check_points(points, rule.in_channels)
    limit = min(rule.max_voxels, len(points)) if rule.mode == 'hard' else len(points)
    slots, shift = voxel_hash.empty_slots(limit)
    low, size = np.array(rule.point_cloud_range[:3], np.float32), np.array(rule.voxel_size, np.float32)
    grid, rows = np.array(rule.grid_size, np.int64), np.empty(len(slots), np.int32)
    return voxel_hash, points, np.empty((limit, 3), np.int32), (low, size, grid, slots, rows, shift)


def _ordered(axes: np.ndarray, rule: VoxelRule) -> np.ndarray:
    return np.pad(axes if rule.order == 'xyz' else axes[:, ::-1], ((0, 0), (1, 0)))


def check_points(points: np.ndarray, width: int) -> np.ndarray:
    """Contiguous (P, width) float32 points."""
    try:
        points = np.asarray(points)
    except ValueError:  # lists of different lengths
        points = np.array(None)
    if points.ndim != 2 or points.shape[1] != width or points.dtype.kind not in 'fiu':
        raise DataError(
            f'points: got {points.dtype} of shape {points.shape}, expected numbers (P, {width}): the '
            f'network was exported with {width} values per point'
        )
    points = np.require(points, np.float32, ['C', 'W'])  # read-only arrays would be compiled for anew
    if not np.isfinite(points).all():
        bad_rows = np.flatnonzero(~np.isfinite(points).all(1))
        raise DataError(
            f'points: {len(bad_rows)} of {len(points)} have values that are not finite, first row '
            f'{bad_rows[0]}: {points[bad_rows[0]].tolist()}; remove them'
        )
    return points
