"""Non-maximum suppression of boxes seen from above, as mmdet3d does it.

The loops of rotated boxes are compiled by numba; without it they run in Python, which is slow.

Glossary: n boxes in descending score order.
"""

import numpy as np


def circle_nms(centres: np.ndarray, threshold: float) -> np.ndarray:
    """Return the indices, ascending, of the boxes that are not near a better one that is kept.

    Centres (n, 2) are in metres, best box first; the threshold is compared with the *squared* distance, as
    mmdet3d's `min_radius` is; a box at exactly that distance is near. Source: mmdet3d 1.0.0rc6,
    core/post_processing/box3d_nms.py `circle_nms`.
    """
    keep: list[int] = []
    for index, centre in enumerate(centres):
        gap = centres[keep] - centre
        if not (gap[:, 0] ** 2 + gap[:, 1] ** 2 <= threshold).any():
            keep.append(index)
    return np.array(keep, np.int64)


def rotated_nms(boxes: np.ndarray, threshold: float) -> np.ndarray:
    """Return the indices, ascending, of the boxes whose IoU with better kept ones is below `threshold`.

    Boxes (n, 5), best first, are x and y of the centre, the sides along x and along y before the box is
    turned, and the angle in radians by which it is turned from the x axis towards the y axis; the first four
    are in one unit, such as metres. With a threshold of 0 or less the first box alone is kept. The IoU is
    that of mmcv's kernel to the last bit, see `rotated_loops.py`.

    Source: mmcv 1.7.2 `nms_rotated` on the CPU, which mmdet3d's `nms_bev` calls (on a GPU an IoU of exactly
    `threshold` is kept).
    """
    if threshold <= 0:
        return np.arange(min(len(boxes), 1))
    from mmdeploy_ext.runtime import rotated_loops

    boxes = np.ascontiguousarray(boxes, np.float32)
    return np.flatnonzero(rotated_loops.keep_best(boxes, np.float32(threshold)))


def bev_corners(boxes: np.ndarray) -> np.ndarray:
    """Return the corners x, y (n, 4, 2) float64 of boxes (n, 5), in the order from x to y around each box.

    Boxes have the columns of `rotated_nms`, and corners their unit. The first corner is the one towards
    positive x and y before the box is turned; with one negative side the order is the other one.
    """
    half = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2 * boxes[:, None, 2:4]
    cos, sin = np.cos(boxes[:, None, 4]), np.sin(boxes[:, None, 4])
    rotated = np.stack([cos * half[..., 0] - sin * half[..., 1], sin * half[..., 0] + cos * half[..., 1]], -1)
    return boxes[:, None, :2] + rotated


def intersection_area(corners: np.ndarray, other_corners: np.ndarray) -> float:
    """Return the area of the intersection of two convex counter-clockwise quadrilaterals (4, 2) float64."""
    from mmdeploy_ext.runtime import bev_loops

    points, clipped = np.empty((2, bev_loops.MAX_CORNERS, 2))
    return float(bev_loops.intersection_area(corners, other_corners, points, clipped))


def intersection_areas(corners: np.ndarray, other_corners: np.ndarray) -> np.ndarray:
    """Return `intersection_area` (n,) float64 of n pairs of quadrilaterals (n, 4, 2) float64."""
    from mmdeploy_ext.runtime import bev_loops

    return bev_loops.intersection_areas(*map(np.ascontiguousarray, (corners, other_corners)))
