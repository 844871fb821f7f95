"""Compiled loops of areas and pooling in a bird's-eye view; without numba they run in Python.

n pairs or intervals; N cameras with feature maps of h x w pixels, D depth bins, C channels, X, Y cells.
"""
# ruff: noqa: ANN001, ANN201 - numba infers the types; the docstrings give them

import numpy as np

from mmdeploy_ext.base.compiled import njit

MAX_CORNERS = 8
"""Most corners of the intersection of two convex quadrilaterals."""


@njit(cache=True, nogil=True)
def intersection_area(subject, clip, points, clipped):
    """Area of the intersection of two convex counter-clockwise quadrilaterals (4, 2) float64.

    Sutherland-Hodgman; points, clipped (`MAX_CORNERS`, 2) float64 are overwritten.
    """
    count, has_edge = 4, False
    points[:4] = subject
    for edge in range(4):
        start, end = clip[edge], clip[(edge + 1) % 4]
        edge_x, edge_y = end[0] - start[0], end[1] - start[1]
        has_edge = has_edge or edge_x != 0 or edge_y != 0
        corners = 0
        for p in range(count):
            point, previous = points[p], points[p - 1 if p else count - 1]
            side = edge_x * (point[1] - start[1]) - edge_y * (point[0] - start[0])  # positive inside
            previous_side = edge_x * (previous[1] - start[1]) - edge_y * (previous[0] - start[0])
            if (side >= 0) != (previous_side >= 0) and corners < MAX_CORNERS:
                fraction = previous_side / (previous_side - side)
                clipped[corners, 0] = previous[0] + (point[0] - previous[0]) * fraction
                clipped[corners, 1] = previous[1] + (point[1] - previous[1]) * fraction
                corners += 1
            if side >= 0 and corners < MAX_CORNERS:
                clipped[corners] = point
                corners += 1
        count = corners
        points[:count] = clipped[:count]
    area = 0.0
    for p in range(count if count > 2 and has_edge else 0):
        following = points[(p + 1) % count]
        area += points[p, 0] * following[1] - points[p, 1] * following[0]
    return area / 2


@njit(cache=True, nogil=True)
def intersection_areas(subjects, clips):
    points, clipped = np.empty((MAX_CORNERS, 2)), np.empty((MAX_CORNERS, 2))
    areas = np.empty(len(subjects))
    for i in range(len(subjects)):
        areas[i] = intersection_area(subjects[i], clips[i], points, clipped)
    return areas


@njit(cache=True, nogil=True)
def add_weighted_features(rows, weights, indices, intervals, num_depths, num_pixels, sums):
    """Add the weighted features of each interval's points to its cell, in the order of the indices.

    A point is (camera D + depth) h w + pixel. rows (N h w, C) float32; weights (N D h w,) float32; indices
    uint32; intervals (n, 3) int32: first place, place after the last, cell x Y + y; sums (X Y, C) float32,
    added to. See `Tables` of `projects/driving/mm2onnx_driving/bevfusion/cuda_loop.py`.
    """
    for i in range(intervals.shape[0]):
        cell = intervals[i, 2]
        for j in range(intervals[i, 0], intervals[i, 1]):
            point = indices[j]
            camera = point // (num_depths * num_pixels)
            row = camera * num_pixels + point % num_pixels
            weight = weights[point]
            for c in range(rows.shape[1]):
                sums[cell, c] += weight * rows[row, c]
