"""The compiled loop behind `pooling.pooled`. Needs numba."""
# ruff: noqa: ANN001, ANN201 - numba infers the types; the docstring gives them

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True)
def add_up(rows, weights, indices, intervals, depths, places, sums):
    """Add the weighted features of each interval to its cell, in the order of the indices.

    rows (N h w, C) float32, weights (N D h w,) float32, indices (T,) uint32, intervals (n, 3) int32; depths:
    D, places: h w. Written: sums (X Y, C) float32. Not written: cells without an interval.
    """
    for i in range(intervals.shape[0]):
        cell = intervals[i, 2]
        for j in range(intervals[i, 0], intervals[i, 1]):
            point = indices[j]
            camera = point // (depths * places)
            row = camera * places + point % places
            weight = weights[point]
            for c in range(rows.shape[1]):
                sums[cell, c] += weight * rows[row, c]
