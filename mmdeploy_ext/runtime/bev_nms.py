"""Non-maximum suppression of boxes from above, as in mmdet3d. n boxes in descending score order."""

import numpy as np


def circle_nms(centres: np.ndarray, threshold: float) -> np.ndarray:
    """Ascending indices of boxes without a better kept box nearby.

    `centres` (n, 2) metres, best first; `threshold` bounds the *squared* distance, inclusively.
    Source: mmdet3d 1.0.0rc6, core/post_processing/box3d_nms.py `circle_nms`.
    """
    keep: list[int] = []
    for index, centre in enumerate(centres):
        gap = centres[keep] - centre
        if not (gap[:, 0] ** 2 + gap[:, 1] ** 2 <= threshold).any():
            keep.append(index)
    return np.array(keep, np.int64)


def rotated_nms(boxes: np.ndarray, threshold: float) -> np.ndarray:
    """Ascending indices of boxes with an IoU below `threshold` with better kept boxes.

    Boxes (n, 5), best first: x, y of the centre, sides along x and y before the turn, angle in radians from x
    to y. At 0 or less only the first is kept. Source: mmcv 1.7.2 `nms_rotated` on the CPU (a GPU keeps an IoU
    equal to `threshold`).
    """
    if threshold <= 0:
        return np.arange(min(len(boxes), 1))
    from mmdeploy_ext.runtime import rotated_loops

    boxes = np.ascontiguousarray(boxes, np.float32)
    return np.flatnonzero(rotated_loops.keep_best(boxes, np.float32(threshold)))


def bev_corners(boxes: np.ndarray) -> np.ndarray:
    """Corners (n, 4, 2) float64 of boxes (n, 5), from positive x, y; one negative side: clockwise."""
    half = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2 * boxes[:, None, 2:4]
    cos, sin = np.cos(boxes[:, None, 4]), np.sin(boxes[:, None, 4])
    rotated = np.stack([cos * half[..., 0] - sin * half[..., 1], sin * half[..., 0] + cos * half[..., 1]], -1)
    return boxes[:, None, :2] + rotated


def intersection_area(corners: np.ndarray, other_corners: np.ndarray) -> float:
    return float(intersection_areas(corners[None], other_corners[None])[0])


def intersection_areas(corners: np.ndarray, other_corners: np.ndarray) -> np.ndarray:
    from mmdeploy_ext.runtime import bev_loops

    return bev_loops.intersection_areas(*map(np.ascontiguousarray, (corners, other_corners)))
