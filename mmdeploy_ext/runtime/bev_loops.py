"""Compiled loops of `bev_nms` and of BEVFusion's pooling: areas and cells seen from above.

Glossary: n pairs or intervals; of the pooling N maps of h x w pixels, D depths, C channels, X, Y cells.
"""
# ruff: noqa: ANN001, ANN201 - numba infers the types; the docstrings give them

import numpy as np

from mmdeploy_ext.core.compiled import njit

MAX_CORNERS = 8
"""Corners of the intersection of two rectangles."""


@njit(cache=True, nogil=True)
def common_area(subject, clip, points, clipped):
    """Return the area of the intersection of two convex counter-clockwise quadrilaterals (4, 2) float64.

    points, clipped (`MAX_CORNERS`, 2) float64 are overwritten. By Sutherland and Hodgman: the subject is cut
    along each edge of the clip.
    """
    count = 4
    points[:4] = subject
    for edge in range(4):
        start, end = clip[edge], clip[(edge + 1) % 4]
        edge_x, edge_y = end[0] - start[0], end[1] - start[1]
        corners = 0
        for p in range(count):
            point, previous = points[p], points[p - 1 if p else count - 1]
            side = edge_x * (point[1] - start[1]) - edge_y * (point[0] - start[0])  # positive inside
            previous_side = edge_x * (previous[1] - start[1]) - edge_y * (previous[0] - start[0])
            if (side >= 0) != (previous_side >= 0) and corners < MAX_CORNERS:
                share = previous_side / (previous_side - side)
                clipped[corners, 0] = previous[0] + (point[0] - previous[0]) * share
                clipped[corners, 1] = previous[1] + (point[1] - previous[1]) * share
                corners += 1
            if side >= 0 and corners < MAX_CORNERS:
                clipped[corners] = point
                corners += 1
        count = corners
        points[:count] = clipped[:count]
    area = 0.0
    for p in range(count if count > 2 else 0):
        following = points[(p + 1) % count]
        area += points[p, 0] * following[1] - points[p, 1] * following[0]
    return area / 2


@njit(cache=True, nogil=True)
def common_areas(subjects, clips):
    """Return `common_area` (n,) float64 of n pairs of quadrilaterals (n, 4, 2) float64."""
    points, clipped = np.empty((MAX_CORNERS, 2)), np.empty((MAX_CORNERS, 2))
    areas = np.empty(len(subjects))
    for i in range(len(subjects)):
        areas[i] = common_area(subjects[i], clips[i], points, clipped)
    return areas


@njit(cache=True, nogil=True)
def add_up(rows, weights, indices, intervals, depths, pixels, sums):
    """Add the weighted features of each interval's points to its cell, in the order of the indices.

    rows (N h w, C) float32: features of N maps of h x w. weights (N D h w,) float32: of all points, D at each
    pixel of a map. indices uint32: numbers of points. intervals (n, 3) int32: first place in the indices, the
    one after the last, and the cell. depths: D. pixels: h w. Added to: sums (X Y, C) float32.
    """
    for i in range(intervals.shape[0]):
        cell = intervals[i, 2]
        for j in range(intervals[i, 0], intervals[i, 1]):
            point = indices[j]
            camera = point // (depths * pixels)
            row = camera * pixels + point % pixels
            weight = weights[point]
            for c in range(rows.shape[1]):
                sums[cell, c] += weight * rows[row, c]
