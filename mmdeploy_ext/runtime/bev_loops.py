"""The compiled loops behind `bev_nms.rotated_nms` and `bevfusion_det.pooling.pooled`. Needs numba."""
# ruff: noqa: ANN001, ANN201 - numba infers the types; the docstrings give them

import numpy as np
from numba import njit

MOST = 8
"""Corners of the common part of two rectangles."""


@njit(cache=True, nogil=True)
def common_area(one, two, points, clipped):
    """Return the area of the common part of two convex counter-clockwise quadrilaterals (4, 2) float64.

    points, clipped (`MOST`, 2) float64 are overwritten. By Sutherland and Hodgman: the first is cut
    along each edge of the second.
    """
    count = 4
    points[:4] = one
    for e in range(4):
        start, end = two[e], two[(e + 1) % 4]
        edge_x, edge_y = end[0] - start[0], end[1] - start[1]
        found = 0
        for p in range(count):
            here, last = points[p], points[p - 1 if p else count - 1]
            side = edge_x * (here[1] - start[1]) - edge_y * (here[0] - start[0])  # positive inside
            before = edge_x * (last[1] - start[1]) - edge_y * (last[0] - start[0])
            if (side >= 0) != (before >= 0) and found < MOST:
                share = before / (before - side)
                clipped[found, 0] = last[0] + (here[0] - last[0]) * share
                clipped[found, 1] = last[1] + (here[1] - last[1]) * share
                found += 1
            if side >= 0 and found < MOST:
                clipped[found] = here
                found += 1
        count = found
        points[:count] = clipped[:count]
    area = 0.0
    for p in range(count if count > 2 else 0):
        following = points[(p + 1) % count]
        area += points[p, 0] * following[1] - points[p, 1] * following[0]
    return area / 2


@njit(cache=True, nogil=True)
def iou(one, two, area_one, area_two, points, clipped):
    """Return the intersection over union of two quadrilaterals; see `common_area`."""
    overlap = common_area(one, two, points, clipped)
    union = area_one + area_two - overlap
    return overlap / union if union > 0 else 0.0


@njit(cache=True, nogil=True)
def keep_best(corners, areas, centres, reach, threshold):
    """Return which boxes (n,) bool overlap no better one that is kept by `threshold` or more.

    corners (n, 4, 2), areas (n,), centres (n, 2) and reach (n,), from the centre to a corner: float64, best
    box first.
    """
    points, clipped = np.empty((MOST, 2)), np.empty((MOST, 2))
    count = len(corners)
    keep = np.zeros(count, np.bool_)
    for index in range(count):
        alone = True
        for other in range(index):
            if not keep[other]:
                continue
            x, y = centres[other, 0] - centres[index, 0], centres[other, 1] - centres[index, 1]
            if np.sqrt(x * x + y * y) > reach[other] + reach[index]:
                continue
            pair = corners[index], corners[other], areas[index], areas[other]
            if iou(pair[0], pair[1], pair[2], pair[3], points, clipped) >= threshold:
                alone = False
                break
        keep[index] = alone
    return keep


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
