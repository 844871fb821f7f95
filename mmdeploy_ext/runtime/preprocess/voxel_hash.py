"""Compiled loops: a hash of active sites, for rulebooks and voxels. They release the interpreter lock.

A hash has `slots` (int64, a power of two, each a key or `EMPTY`), `rows` (int32) and `shift`. A key is the
row-major index of a site (sample, three axes) or a cell (x, y, z). N sites, K kernel offsets, M output sites,
P points of D values, n voxels, T most points of a voxel.
"""
# ruff: noqa: ANN001, ANN201 - numba infers the types; the docstrings give them

import numpy as np

from mmdeploy_ext.base.compiled import njit

EMPTY = np.int64(-1)
LEAST_SLOTS = 64
"""A hash has more slots than this."""
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: neighbouring keys spread over the whole table


@njit(cache=True, nogil=True, inline='always')
def slot(key, slots, shift):
    """Place of a key, or the free place for it; one has to exist."""
    mask = np.int64(slots.shape[0] - 1)
    place = np.int64((np.uint64(key) * _MIX) >> shift)
    while slots[place] != key and slots[place] != EMPTY:
        place = (place + np.int64(1)) & mask
    return place


@njit(cache=True, nogil=True)
def fill(keys, slots, rows, shift):
    """Put keys and rows into a hash; return the first row with a repeated key, or -1."""
    for row in range(keys.shape[0]):
        place = slot(keys[row], slots, shift)
        if slots[place] == keys[row]:
            return row
        slots[place] = keys[row]
        rows[place] = row
    return -1


@njit(cache=True, nogil=True)
def neighbours(sites, shape, steps, slots, rows, shift, table):
    """Write the row of the site at each step (K, 3) from each site (N, 4) into table (K, N); N for none.

    shape (3,): cells of the grid; slots, rows, shift: a hash of the sites.
    """
    none = np.int32(sites.shape[0])
    for k in range(steps.shape[0]):
        for i in range(sites.shape[0]):
            a, b, c = sites[i, 1] + steps[k, 0], sites[i, 2] + steps[k, 1], sites[i, 3] + steps[k, 2]
            row = none
            if 0 <= a < shape[0] and 0 <= b < shape[1] and 0 <= c < shape[2]:
                key = ((sites[i, 0] * shape[0] + a) * shape[1] + b) * shape[2] + c
                place = slot(key, slots, shift)
                if slots[place] == key:
                    row = rows[place]
            table[k, i] = row


@njit(cache=True, nogil=True)
def mirror(table, start, stop):
    """table[K-1-k, j] = i if table[k, i] = j, for k of start .. stop-1; (K, N) int32, N for none."""
    none = np.int32(table.shape[1])
    for k in range(start, stop):
        mirrored = table[table.shape[0] - 1 - k]
        mirrored[:] = none
        for i in range(table.shape[1]):
            if table[k, i] != none:
                mirrored[table[k, i]] = i


@njit(cache=True, nogil=True)
def reached_keys(sites, shape, axes, slots, shift, keys):
    """Collect the keys of output sites that input sites (N, 4) reach; return their number, -1 if full.

    shape (3,): cells of the output grid; axes: per axis (k, size) int32 the output position by offset and
    input position, or -1; slots, shift and keys (n,) int64 are filled.
    """
    n = 0
    for i in range(sites.shape[0]):
        for ka in range(axes[0].shape[0]):
            a = axes[0][ka, sites[i, 1]]
            if a < 0:
                continue
            for kb in range(axes[1].shape[0]):
                b = axes[1][kb, sites[i, 2]]
                if b < 0:
                    continue
                for kc in range(axes[2].shape[0]):
                    c = axes[2][kc, sites[i, 3]]
                    if c < 0:
                        continue
                    key = ((sites[i, 0] * shape[0] + a) * shape[1] + b) * shape[2] + c
                    place = slot(key, slots, shift)
                    if slots[place] != key:
                        if n == keys.shape[0]:
                            return -1
                        slots[place] = key
                        keys[n] = key
                        n += 1
    return n


@njit(cache=True, nogil=True)
def reach(sites, shape, axes, offsets, slots, rows, shift, table):
    """Write input rows into table (K, M) at the output rows that they reach, else N.

    sites, shape, axes: see `reached_keys`; offsets (K, 3): indices into the first axis of each of axes;
    slots, rows, shift: a hash of all output sites.
    """
    for k in range(offsets.shape[0]):
        table[k] = sites.shape[0]
        first, second, third = axes[0][offsets[k, 0]], axes[1][offsets[k, 1]], axes[2][offsets[k, 2]]
        for i in range(sites.shape[0]):
            a, b, c = first[sites[i, 1]], second[sites[i, 2]], third[sites[i, 3]]
            if (a | b | c) >= 0:
                key = ((sites[i, 0] * shape[0] + a) * shape[1] + b) * shape[2] + c
                table[k, rows[slot(key, slots, shift)]] = i


@njit(cache=True, nogil=True)
def voxel_of(point, low, size, grid, slots, rows, shift, coordinates, n):
    """Row of a point's voxel, -1 for none, and the number of voxels after it.

    A new voxel takes row n of `coordinates` (int32 x, y, z) unless full. low, size (3,): lower bounds and
    voxel size, m, float32 as in mmcv; grid (3,) int64: voxels per axis.
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
def collect(points, low, size, grid, slots, rows, shift, coordinates, sums, counts, max_points):
    """Sum the points (P, D) of each voxel; return the number of voxels.

    Writes coordinates (n, 3) int32, zeroed sums (n, D) float32 and counts (n,) int32, up to max_points points
    per voxel and n voxels. For other arguments see `voxel_of`.
    """
    n = np.int64(0)  # a literal would be a type of its own
    for p in range(points.shape[0]):
        row, n = voxel_of(points[p], low, size, grid, slots, rows, shift, coordinates, n)
        if row >= 0 and counts[row] < max_points:
            counts[row] += 1
            for d in range(points.shape[1]):
                sums[row, d] += points[p, d]
    return n


@njit(cache=True, nogil=True)
def gather(points, low, size, grid, slots, rows, shift, coordinates, voxel_points, counts):
    """Write the first points of each voxel to voxel_points (n, T, D) float32; else as `collect`."""
    n = np.int64(0)  # a literal would be a type of its own
    for p in range(points.shape[0]):
        row, n = voxel_of(points[p], low, size, grid, slots, rows, shift, coordinates, n)
        if row >= 0 and counts[row] < voxel_points.shape[1]:
            for d in range(points.shape[1]):
                voxel_points[row, counts[row], d] = points[p, d]
            counts[row] += 1
    return n


@njit(cache=True, nogil=True)
def assign(points, low, size, grid, slots, rows, shift, coordinates, voxel_rows):
    """Write voxel rows to voxel_rows (P,) int32, -1 out of range or over n voxels; else as `collect`."""
    n = np.int64(0)  # a literal would be a type of its own
    for p in range(points.shape[0]):
        voxel_rows[p], n = voxel_of(points[p], low, size, grid, slots, rows, shift, coordinates, n)
    return n


def empty_slots(sites: int) -> tuple[np.ndarray, np.uint64]:
    """Free slots, a power of two over twice the sites, and the shift."""
    bits = max(2 * sites, LEAST_SLOTS).bit_length()
    return np.full(1 << bits, EMPTY, np.int64), np.uint64(64 - bits)
