"""Voxels for the proof of a sparse backbone: the traced input, and different ones."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.preprocess.points import point_rule, voxelise
from mmdeploy_ext.runtime.sparse.engine import checked_features
from mmdeploy_ext.runtime.sparse.rulebook import Level
from mmdeploy_ext.runtime.sweeps import Sweeps
from mmdeploy_ext.runtime.voxel_files import read_voxels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.families.sparse import EncoderSettings
    from mmdeploy_ext.runtime.sparse.ir import Triple
    from mmdeploy_ext.spec.preparation import VoxelRule

CLUSTERS, CLUSTER_VOXELS, SPREAD = 160, 8, 2
"""Clusters of the random set, voxels in each, and largest distance from the centre."""


@dataclasses.dataclass(frozen=True)
class VoxelSet:
    """The voxels of one input.

    Attributes:
        features: (N, C) float32.
        coordinates: (N, 4) int32: sample 0, then the axes in the encoder's order.
        traced: whether the exporter saw it.
    """

    name: str
    features: np.ndarray
    coordinates: np.ndarray
    traced: bool = False


def in_order(coordinates: np.ndarray, same: bool) -> np.ndarray:
    """Return coordinates (N, 4) in a file's order of axes, reversed unless `same`."""
    return coordinates if same else np.ascontiguousarray(coordinates[:, [0, 3, 2, 1]])


def proof_sets(spatial_shape: Triple, channels: int) -> list[VoxelSet]:
    """Return the traced input and five others, equal at every call."""
    rng, shape = np.random.default_rng(0), np.array(spatial_shape)
    voxels = {
        'no voxel': np.zeros((0, 3), np.int64),
        'one voxel': np.array([shape // 2]),
        'borders and corners': borders(shape),
        'random clusters': clusters(shape, rng),
        'a full block': full_block(shape),
    }
    sets = [VoxelSet('traced input', np.zeros((1, channels), np.float32), np.zeros((1, 4), np.int32), True)]
    for name, axes in voxels.items():
        features = rng.standard_normal((len(axes), channels)).astype(np.float32)
        sets.append(VoxelSet(name, features, np.pad(axes, ((0, 0), (1, 0))).astype(np.int32)))
    return sets


def points_of(source: str, cfg: Any, rule: VoxelRule, limit: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, points (P, D) float32) of sweeps, x, y, z in metres first.

    Args:
        source: raw float32 points (.bin), an array (.npy), a folder of them, or infos of mmdet3d.
        cfg: for the columns of the files and the folder of the data set.
        rule: how points become voxels.
        limit: most sweeps of a folder or of infos, evenly chosen; 0: all.
    """
    sweeps = _sweeps(source, cfg, rule, limit)
    for item in sweeps.items:
        if getattr(item, 'suffix', '') == '.npz':
            raise DataError(f'{item}: has voxels, the model expects points; pass a sweep (.bin, .npy)')
        yield sweeps.name(item), sweeps.points(item)


def sweep_sets(
    source: str, rule: VoxelRule, cfg: Any, settings: EncoderSettings, limit: int
) -> Iterator[VoxelSet]:
    """Yield the voxels of sweeps; see `points_of`."""
    sweeps = _sweeps(source, cfg, rule, limit)
    for item in sweeps.items:
        if getattr(item, 'suffix', '') == '.npz':
            yield _read_set(item, rule, settings)
            continue
        points = sweeps.points(item)
        features, coordinates = voxelise(points, rule)
        if not len(features):
            raise DataError(
                f'{item if isinstance(item, Path) else source}: 0 of {len(points)} points are in the range '
                f'{list(rule.point_cloud_range)} m; check its frame and unit'
            )
        yield VoxelSet(f'{sweeps.name(item)}: {len(points)} points', features, coordinates)


def _sweeps(source: str, cfg: Any, rule: VoxelRule, limit: int) -> Sweeps:
    root = ((cfg.get('data') or {}).get('test') or {}).get('data_root')
    points_rule = point_rule(cfg, rule.in_channels)
    return Sweeps(source, lambda points: voxelise(points, rule), points_rule, root, limit)


def _read_set(path: Path, rule: VoxelRule, settings: EncoderSettings) -> VoxelSet:
    features, coordinates = read_voxels(path, settings.order)
    if rule.mode == 'hard' and len(features) > rule.max_voxels:
        raise DataError(
            f'{path}: {len(features)} voxels, the model accepts at most {rule.max_voxels} (max_voxels); '
            'remove some or pass the points'
        )
    try:
        level = Level(coordinates, settings.spatial_shape)
        _ = level.hash  # finds voxels that are there twice
        checked_features(features, len(level), settings.in_channels)
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    return VoxelSet(path.name, features, coordinates)


def borders(shape: np.ndarray) -> np.ndarray:
    """Return voxels (n, 3) on corners, edges and faces of a grid, with neighbours."""
    values = [sorted({0, 1, size // 2, size - 2, size - 1}) for size in shape]
    voxels = np.array([*itertools.product(*values)])
    voxels = voxels[((voxels == 0) | (voxels == shape - 1)).any(1)]
    return np.unique(np.clip(voxels, 0, shape - 1), axis=0)


def clusters(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    centres = rng.integers(0, shape, (CLUSTERS, 1, 3))
    around = centres + rng.integers(-SPREAD, SPREAD + 1, (CLUSTERS, CLUSTER_VOXELS, 3))
    voxels = np.unique(np.clip(around.reshape(-1, 3), 0, shape - 1), axis=0)
    return rng.permutation(voxels)


def full_block(shape: np.ndarray) -> np.ndarray:
    """Return all voxels (n, 3) of the last six indices of each axis: no inner neighbour is missing."""
    lower = np.maximum(shape - 6, 0)
    axes = [np.arange(low, size) for low, size in zip(lower, shape, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3)
