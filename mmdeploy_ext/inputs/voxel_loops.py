"""The compiled loops behind `points.voxelise` and `points.pillars`. Needs numba."""
# ruff: noqa: ANN001, ANN201 - numba infers the types; the docstring gives them

from __future__ import annotations

import numpy as np
from numba import njit

from mmdeploy_ext.inputs.voxel_hash import slot


@njit(cache=True, nogil=True)
def voxel_of(point, low, size, grid, slots, rows, shift, coordinates, n):
    """Return the row of a point's voxel, -1 where it has none, and how many voxels there are now.

    A voxel that is met for the first time takes the next row of `coordinates` (n, 3) int32 in x, y, z, where
    there is room. low and size (3,) float32 as mmcv computes in, grid (3,) int64; slots, rows, shift: a hash.
    """
    x = np.floor((point[0] - low[0]) / size[0])
    y = np.floor((point[1] - low[1]) / size[1])
    z = np.floor((point[2] - low[2]) / size[2])
    if not (0 <= x < grid[0] and 0 <= y < grid[1] and 0 <= z < grid[2]):
        return -1, n
    a, b, c = np.int64(x), np.int64(y), np.int64(z)
    key = (a * grid[1] + b) * grid[2] + c
    place = slot(key, slots, shift)
    if slots[place] != key:
        if n == coordinates.shape[0]:
            return -1, n
        slots[place] = key
        rows[place] = n
        coordinates[n, 0], coordinates[n, 1], coordinates[n, 2] = a, b, c
        n += 1
    return rows[place], n


@njit(cache=True, nogil=True)
def collect(points, low, size, grid, max_points, slots, rows, shift, coordinates, sums, counts):
    """Sum up the points of every voxel, voxels in the order of their first point; return how many there are.

    points (P, D); the rest of the arguments as in `voxel_of`. Written, with room for the most voxels:
    coordinates (n, 3) int32, sums (n, D) float32 and counts (n,) int32 of at most max_points points. Points
    of voxels for which there is no room are left out.
    """
    n = 0
    for p in range(points.shape[0]):
        row, n = voxel_of(points[p], low, size, grid, slots, rows, shift, coordinates, n)
        if row >= 0 and counts[row] < max_points:
            counts[row] += 1
            for d in range(points.shape[1]):
                sums[row, d] += points[p, d]
    return n


@njit(cache=True, nogil=True)
def gather(points, low, size, grid, slots, rows, shift, coordinates, kept, counts):
    """Keep the first points of every voxel, kept (n, M, D) float32; otherwise as `collect`."""
    n = 0
    for p in range(points.shape[0]):
        row, n = voxel_of(points[p], low, size, grid, slots, rows, shift, coordinates, n)
        if row >= 0 and counts[row] < kept.shape[1]:
            for d in range(points.shape[1]):
                kept[row, counts[row], d] = points[p, d]
            counts[row] += 1
    return n


@njit(cache=True, nogil=True)
def assign(points, low, size, grid, slots, rows, shift, coordinates, found):
    """Write the row of each point's voxel to found (P,) int32, -1 out of range; otherwise as `collect`."""
    n = 0
    for p in range(points.shape[0]):
        found[p], n = voxel_of(points[p], low, size, grid, slots, rows, shift, coordinates, n)
    return n
