"""Compiled loops of rotated boxes: mmcv's CPU kernels of IoU and NMS, operation by operation.

float32 in the kernel's order, since rounding decides about boxes with common edges. Source: mmcv 1.7.2
`ops/csrc/common/box_iou_rotated_utils.hpp` and `ops/csrc/pytorch/cpu/nms_rotated.cpp`. n boxes (5,) x, y,
width, height, angle in radians from x towards y.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types; the docstrings give them

import math

import numpy as np

from mmdeploy_ext.base.compiled import njit

POINTS = 24
HALF, TWO, ZERO, UNIT = np.float32(0.5), np.float32(2), np.float32(0), np.float32(1)
SAME_ANGLE, SAME_POINT, NO_AREA = 1e-6, 1e-8, 1e-14
"""Limits that count as none: cross product of directions, squared length, and area (or cross product of
edges).
"""
SLACK = 1e-3
"""Boxes are compared if their circles are within this share of the radii, and pixels."""


@njit(cache=True, nogil=True)
def _cross(x1, y1, x2, y2):
    return x1 * y2 - x2 * y1


@njit(cache=True, nogil=True)
def _write_corners(box, x, y, corners):
    angle = np.float64(box[4])
    cos, sin = np.float32(math.cos(angle)) * HALF, np.float32(math.sin(angle)) * HALF
    corners[0, 0] = x - sin * box[3] - cos * box[2]
    corners[0, 1] = y + cos * box[3] - sin * box[2]
    corners[1, 0] = x + sin * box[3] - cos * box[2]
    corners[1, 1] = y - cos * box[3] - sin * box[2]
    corners[2, 0] = TWO * x - corners[0, 0]
    corners[2, 1] = TWO * y - corners[0, 1]
    corners[3, 0] = TWO * x - corners[1, 0]
    corners[3, 1] = TWO * y - corners[1, 1]


@njit(cache=True, nogil=True)
def _add_crossings(corners, other_corners, points):
    count = 0
    for i in range(4):
        x, y = corners[i]
        edge_x, edge_y = corners[(i + 1) % 4, 0] - x, corners[(i + 1) % 4, 1] - y
        for j in range(4):
            other_x, other_y = other_corners[j]
            next_x, next_y = other_corners[(j + 1) % 4]
            other_edge_x, other_edge_y = next_x - other_x, next_y - other_y
            determinant = _cross(other_edge_x, other_edge_y, edge_x, edge_y)
            if abs(determinant) <= NO_AREA:
                continue
            gap_x, gap_y = other_x - x, other_y - y
            share = _cross(other_edge_x, other_edge_y, gap_x, gap_y) / determinant
            other_share = _cross(edge_x, edge_y, gap_x, gap_y) / determinant
            if ZERO <= share <= UNIT and ZERO <= other_share <= UNIT:
                points[count, 0] = x + edge_x * share
                points[count, 1] = y + edge_y * share
                count += 1
    return count


@njit(cache=True, nogil=True)
def _add_inner_corners(corners, other_corners, points, count):
    along_x, along_y = other_corners[1, 0] - other_corners[0, 0], other_corners[1, 1] - other_corners[0, 1]
    across_x, across_y = other_corners[0, 0] - other_corners[3, 0], other_corners[0, 1] - other_corners[3, 1]
    length = along_x * along_x + along_y * along_y
    other_length = across_x * across_x + across_y * across_y
    for i in range(4):
        x, y = corners[i, 0] - other_corners[0, 0], corners[i, 1] - other_corners[0, 1]
        along = x * along_x + y * along_y
        across = -(x * across_x + y * across_y)
        if along >= ZERO and across >= ZERO and along <= length and across <= other_length:
            points[count] = corners[i]
            count += 1
    return count


@njit(cache=True, nogil=True)
def _precedes(x1, y1, x2, y2):
    cross = _cross(x1, y1, x2, y2)
    if abs(cross) < SAME_ANGLE:
        return x1 * x1 + y1 * y1 < x2 * x2 + y2 * y2
    return cross > ZERO


@njit(cache=True, nogil=True)
def _move_to_lowest(points, count):
    lowest = 0
    for i in range(1, count):
        is_level = points[i, 1] == points[lowest, 1]
        if points[i, 1] < points[lowest, 1] or (is_level and points[i, 0] < points[lowest, 0]):
            lowest = i
    start_x, start_y = points[lowest]
    for i in range(count):
        points[i, 0] -= start_x
        points[i, 1] -= start_y
    first_x, first_y = points[0]
    points[0, 0], points[0, 1] = points[lowest]
    points[lowest, 0], points[lowest, 1] = first_x, first_y


@njit(cache=True, nogil=True)
def _sort_around_first(points, count):
    """Insertion sort, as libstdc++ does for up to 16 points."""
    for i in range(2, count):
        x, y = points[i]
        place = i
        if _precedes(x, y, points[1, 0], points[1, 1]):
            while place > 1:
                points[place] = points[place - 1]
                place -= 1
        else:
            while _precedes(x, y, points[place - 1, 0], points[place - 1, 1]):
                points[place] = points[place - 1]
                place -= 1
        points[place, 0], points[place, 1] = x, y


@njit(cache=True, nogil=True)
def _scan_hull(points, count):
    second = 1
    while second < count:
        x, y = points[second]
        if x * x + y * y > SAME_POINT:
            break
        second += 1
    if second == count:
        return 1
    points[1] = points[second]
    size = 2
    for i in range(second + 1, count):
        while size > 1:
            x, y = points[size - 2]
            turn = _cross(
                points[i, 0] - x, points[i, 1] - y, points[size - 1, 0] - x, points[size - 1, 1] - y
            )
            if not turn >= ZERO:  # also for NaN
                break
            size -= 1
        points[size] = points[i]
        size += 1
    return size


@njit(cache=True, nogil=True)
def convex_hulls(points, counts):
    """Graham's scan of each pair; returns the number (n,) int64 of hull points, left in `points`.

    points (n, `POINTS`, 2) float32, relative to the first, lowest and leftmost; counts (n,) int64 are used.
    """
    sizes = np.ones(len(points), np.int64)
    for i in range(len(points)):
        if counts[i] > 1:
            _sort_around_first(points[i], counts[i])
            sizes[i] = _scan_hull(points[i], counts[i])
    return sizes


@njit(cache=True, nogil=True)
def overlap(box, other_box, corners, other_corners, points):
    """Common area, float32, of two boxes (5,) float32, rounded as in mmcv's kernel; 0 without an area.

    corners, other_corners (4, 2) and points (`POINTS`, 2) float32 are overwritten.
    """
    if box[2] * box[3] < NO_AREA or other_box[2] * other_box[3] < NO_AREA:
        return ZERO
    middle_x, middle_y = (box[0] + other_box[0]) * HALF, (box[1] + other_box[1]) * HALF
    _write_corners(box, box[0] - middle_x, box[1] - middle_y, corners)
    _write_corners(other_box, other_box[0] - middle_x, other_box[1] - middle_y, other_corners)
    count = _add_crossings(corners, other_corners, points)
    count = _add_inner_corners(corners, other_corners, points, count)
    count = _add_inner_corners(other_corners, corners, points, count)
    area = ZERO
    if count > 2:
        _move_to_lowest(points, count)
        _sort_around_first(points, count)
        for i in range(1, _scan_hull(points, count) - 1):
            area += abs(_cross(points[i, 0], points[i, 1], points[i + 1, 0], points[i + 1, 1]))
        area = area * HALF
    return area


@njit(cache=True, nogil=True)
def iou(box, other_box, corners, other_corners, points):
    """IoU, float32, of two boxes, see `overlap` (0 to 3 for almost equal boxes)."""
    area, other_area = box[2] * box[3], other_box[2] * other_box[3]
    if area < NO_AREA or other_area < NO_AREA:
        return ZERO
    shared = overlap(box, other_box, corners, other_corners, points)
    return shared / (area + other_area - shared)


@njit(cache=True, nogil=True)
def overlaps(boxes, other_boxes):
    """Common areas (n,) float32 of pairs of boxes (n, 5) float32."""
    corners, other_corners = np.empty((4, 2), np.float32), np.empty((4, 2), np.float32)
    points, values = np.empty((POINTS, 2), np.float32), np.empty(len(boxes), np.float32)
    for i in range(len(boxes)):
        values[i] = overlap(boxes[i], other_boxes[i], corners, other_corners, points)
    return values


@njit(cache=True, nogil=True)
def keep_best(boxes, threshold):
    """Whether boxes (n,) bool are kept: no better kept box overlaps by `threshold` (float32) or more.

    boxes (n, 5) float32, best first, of one class, or moved apart by class.
    """
    corners, other_corners = np.empty((4, 2), np.float32), np.empty((4, 2), np.float32)
    points = np.empty((POINTS, 2), np.float32)
    reach = np.sqrt(boxes[:, 2].astype(np.float64) ** 2 + boxes[:, 3].astype(np.float64) ** 2) / 2
    keep = np.ones(len(boxes), np.bool_)
    for better in range(len(boxes)):
        if not keep[better]:
            continue
        for i in range(better + 1, len(boxes)):
            if not keep[i]:
                continue
            x = np.float64(boxes[better, 0]) - np.float64(boxes[i, 0])
            y = np.float64(boxes[better, 1]) - np.float64(boxes[i, 1])
            if math.sqrt(x * x + y * y) > (reach[better] + reach[i]) * (1 + SLACK) + SLACK:
                continue
            if iou(boxes[better], boxes[i], corners, other_corners, points) >= threshold:
                keep[i] = False
    return keep
