"""Compiled loops: a hash of active sites, behind the rulebook and behind the voxels of points.

numba compiles them; without it they run in Python, which is slow. Each loop releases the interpreter lock and
writes to places of its own, so that any number of Python threads gives the same arrays. numba's own threads
are not used: they die in forked workers and in concurrent callers.

A hash from keys to rows is `slots`, int64, a power of two of them, each a key or `EMPTY`; `rows`, int32, the
row of the key in each slot; and `shift`; `empty_slots` returns slots and shift. A key is the row-major index
of a site in (sample, three axes), or of the cell of a point in (x, y, z).

Glossary: N sites (N, 4) of sample and three axes, K kernel offsets, M output sites of a convolution,
P points of D values, n voxels, T most points of a voxel.
"""
# ruff: noqa: ANN001, ANN201 - numba infers the types; the docstrings give them

import numpy as np

from mmdeploy_ext.core.compiled import njit

EMPTY = np.int64(-1)
"""Marks a free slot."""
LEAST_SLOTS = 64
"""A hash has more slots than this; the smallest one twice as many. A search for output sites begins with room
for this many at least."""
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: neighbouring keys spread over the whole table


@njit(cache=True, nogil=True, inline='always')
def slot(key, slots, shift):
    """Return the place of a key in the slots of a hash, or the free place for it; there has to be one."""
    mask = np.int64(slots.shape[0] - 1)
    place = np.int64((np.uint64(key) * _MIX) >> shift)
    while slots[place] != key and slots[place] != EMPTY:
        place = (place + np.int64(1)) & mask
    return place


@njit(cache=True, nogil=True)
def fill(keys, slots, rows, shift):
    """Put every key into a hash with its row; return the first row whose key is in it already, or -1.

    Rows from that one on are not put in. slots, rows, shift: the hash, of which slots and rows are filled.
    """
    for row in range(keys.shape[0]):
        place = slot(keys[row], slots, shift)
        if slots[place] == keys[row]:
            return row
        slots[place] = keys[row]
        rows[place] = row
    return -1


@njit(cache=True, nogil=True)
def neighbours(sites, shape, steps, slots, rows, shift, table):
    """Write the row of the site at each step from every site into table (K, N); N stands for no site.

    sites (N, 4), shape (3,) cells of the grid, steps (K, 3) cells; slots, rows, shift: a hash of the sites.
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
def mirror(table, mirrored):
    """Write the pairs of rows in the other direction: mirrored[k, j] = i if table[k, i] = j.

    Both are (K, N) int32, and N stands for no row.
    """
    none = np.int32(table.shape[1])
    for k in range(table.shape[0]):
        mirrored[k] = none
        for i in range(table.shape[1]):
            if table[k, i] != none:
                mirrored[k, table[k, i]] = i


@njit(cache=True, nogil=True)
def reached_keys(sites, shape, axes, slots, shift, keys):
    """Collect the key of each output site that an input site reaches, once; return their number, -1 if full.

    sites (N, 4) of the input, shape (3,) cells of the output's grid; axes: per axis (k, size) int32, the
    output position that an input position reaches by each of k offsets, or -1; slots, shift: an empty hash,
    keys (n,) int64: both are filled.
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
    """Write every input row into table (K, M) at the output row that it reaches by each offset, else N.

    sites (N, 4) of the input, shape (3,) cells of the output's grid, axes as in `reached_keys`, offsets
    (K, 3) indices into the first axis of each of them; slots, rows, shift: a hash of the output sites, which
    has to have all that are reached.
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
    """Return the row of a point's voxel, -1 if it gets none, and the number of voxels so far.

    A new voxel takes row n of `coordinates`, int32 x, y, z, unless they are full; the argument n is the
    number of voxels before this point. low and size (3,) are the lower ends of the range and the sides of a
    voxel in x, y, z, m, float32 as mmcv computes in; grid (3,) int64 the voxels per axis; slots, rows, shift:
    a hash.
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
    """Sum the points of every voxel, voxels in the order of their first point; return the number of voxels.

    points (P, D); the rest of the arguments as in `voxel_of`. Written are coordinates (n, 3) int32, and sums
    (n, D) float32 and counts (n,) int32, both zeros before, of at most max_points points. Points of more than
    n voxels are left out.
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
def gather(points, low, size, grid, slots, rows, shift, coordinates, voxel_points, counts):
    """Write the first points of every voxel to voxel_points (n, T, D) float32; otherwise as `collect`."""
    n = 0
    for p in range(points.shape[0]):
        row, n = voxel_of(points[p], low, size, grid, slots, rows, shift, coordinates, n)
        if row >= 0 and counts[row] < voxel_points.shape[1]:
            for d in range(points.shape[1]):
                voxel_points[row, counts[row], d] = points[p, d]
            counts[row] += 1
    return n


@njit(cache=True, nogil=True)
def assign(points, low, size, grid, slots, rows, shift, coordinates, voxel_rows):
    """Write the row of each point's voxel to voxel_rows (P,) int32, -1 without one; else as `collect`.

    A point has none if it is out of range, or if its voxel is new and all n rows are taken.
    """
    n = 0
    for p in range(points.shape[0]):
        voxel_rows[p], n = voxel_of(points[p], low, size, grid, slots, rows, shift, coordinates, n)
    return n


def empty_slots(sites: int) -> tuple[np.ndarray, np.uint64]:
    """Return free slots, more than two per site, a power of two from 128 on, and the shift to hash by.

    `sites` is the number of keys that the hash has to take.
    """
    bits = max(2 * sites, LEAST_SLOTS).bit_length()
    return np.full(1 << bits, EMPTY, np.int64), np.uint64(64 - bits)
