"""Voxels of any number to measure sparse backbones on, and how their time grows. Needs numpy only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.inputs.points import VoxelRule
    from mmdeploy_ext.sparse.ir import Triple

PATCH = 24
"""Cells: side of a piece of ground or wall."""
FILLED = 0.45
"""Part of a piece's cells that have points."""
WALLS = 0.3
"""Part of the pieces that stand upright."""
MOST_FILLED = 0.5
"""Part of a small grid that is filled at most."""
POINTS_PER_VOXEL = 3


def surfaces(spatial_shape: Triple, order: str, count: int, seed: int = 0) -> np.ndarray:
    """Return voxels on pieces of ground and wall, as a LiDAR sees them.

    The pieces have one size, so that a voxel has as many neighbours in a small scene as in a large one: what
    grows is the scene. Pieces overlap now and then, more often when the grid fills.

    Args:
        spatial_shape: grid size per axis.
        order: of the axes, 'xyz' or 'zyx'.
        count: of voxels; less on a grid that has no room for them.
        seed: of the scene.

    Returns:
        (count, 4) int32, sample 0, every voxel once, in random order.
    """
    shape = np.array(spatial_shape if order == 'xyz' else spatial_shape[::-1], np.int64)
    count = min(count, int(MOST_FILLED * shape.prod()))
    rng, keys = np.random.default_rng(seed), np.zeros(0, np.int64)
    while len(keys) < count:
        pieces = [_piece(shape, rng) for _ in range(64)]
        keys = np.unique(np.concatenate([keys, *pieces]))
    keys = _whole_pieces_first(keys, count, rng)
    axes = np.stack(np.unravel_index(keys, shape), 1)
    if order == 'zyx':
        axes = axes[:, ::-1]
    return np.concatenate([np.zeros((len(axes), 1), np.int32), axes.astype(np.int32)], 1)


def _piece(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the keys of one piece's voxels: nearly flat ground, or a wall along x or y."""
    first, second = np.meshgrid(np.arange(PATCH), np.arange(PATCH), indexing='ij')
    seen = rng.random((PATCH, PATCH)) < FILLED
    first, second = first[seen], second[seen]
    bumps = rng.integers(0, 2, len(first))
    if rng.random() < WALLS:
        cells = [first, bumps, second] if rng.random() < 0.5 else [bumps, first, second]
    else:
        cells = [first, second, bumps]
    corner = rng.integers(-PATCH // 2, np.maximum(shape - PATCH // 2, 1), 3)
    place = np.stack(cells, 1) + corner
    place = place[((place >= 0) & (place < shape)).all(1)]
    return np.ravel_multi_index(tuple(place.T), tuple(shape)).astype(np.int64)


def _whole_pieces_first(keys: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` keys, a contiguous run of them so that neighbours stay together, shuffled."""
    start = int(rng.integers(0, len(keys) - count + 1))
    return rng.permutation(keys[start : start + count])


def points_in(coordinates: np.ndarray, rule: VoxelRule, seed: int = 0) -> np.ndarray:
    """Return points that fall into voxels, a few in each.

    Args:
        coordinates: (N, 4) in the order of the rule.
        rule: of the voxels.
        seed: of the places within a voxel.

    Returns:
        (P, D) float32: x, y, z in metres, then random values.
    """
    rng = np.random.default_rng(seed)
    axes = coordinates[:, 1:] if rule.order == 'xyz' else coordinates[:, :0:-1]
    axes = np.repeat(axes, POINTS_PER_VOXEL, axis=0)
    # away from the faces, where float32 decides
    place = axes + rng.uniform(0.2, 0.8, axes.shape)
    metres = place * np.array(rule.voxel_size) + np.array(rule.point_cloud_range[:3])
    rest = rng.random((len(axes), rule.in_channels - 3))
    return rng.permutation(np.concatenate([metres, rest], 1)).astype(np.float32)


def growth_exponent(counts: Sequence[int], milliseconds: Sequence[float]) -> float | None:
    """Return the slope of log(time) over log(voxels), by least squares; None of fewer than two sizes."""
    if len(set(counts)) < 2 or min(milliseconds) <= 0:
        return None
    return float(np.polyfit(np.log(counts), np.log(milliseconds), 1)[0])
