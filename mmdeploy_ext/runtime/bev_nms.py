"""Non-maximum suppression of boxes seen from above, as mmdet3d does it. Needs numpy only.

Glossary: n boxes in descending score order.
"""

from __future__ import annotations

import numpy as np


def circle_nms(centres: np.ndarray, threshold: float) -> np.ndarray:
    """Keep a box unless a better one that is kept is near.

    Args:
        centres: (n, 2) float32 metres, best box first.
        threshold: compared with the *squared* distance, as mmdet3d's `min_radius` is.

    Returns:
        Indices that are kept, ascending.

    Source: mmdet3d 1.0.0rc6, core/post_processing/box3d_nms.py `circle_nms`.
    """
    keep: list[int] = []
    for index, centre in enumerate(centres):
        gap = centres[keep] - centre
        if not (gap[:, 0] ** 2 + gap[:, 1] ** 2 <= threshold).any():
            keep.append(index)
    return np.array(keep, np.int64)


def rotated_nms(boxes: np.ndarray, threshold: float) -> np.ndarray:
    """Keep a box unless it overlaps a better one that is kept by `threshold` or more.

    Args:
        boxes: (n, 5) x, y, sizes along and across, yaw counter-clockwise in radians; best box first.
        threshold: IoU that two kept boxes stay below; with 0 the first box alone is kept.

    Returns:
        Indices that are kept, ascending.

    Source: mmcv 1.7.2 `nms_rotated` on the CPU, which mmdet3d's `nms_bev` calls (on a GPU an IoU of exactly
    `threshold` is kept).
    """
    if threshold <= 0:
        return np.arange(min(len(boxes), 1))
    corners = bev_corners(boxes.astype(np.float64))
    areas = np.prod(boxes[:, 2:4].astype(np.float64), axis=1)
    reach = np.linalg.norm(boxes[:, 2:4].astype(np.float64), axis=1) / 2
    keep: list[int] = []
    for index in range(len(boxes)):
        gap = np.linalg.norm(boxes[keep, :2].astype(np.float64) - boxes[index, :2], axis=1)
        near = [other for other, far in zip(keep, gap > reach[keep] + reach[index], strict=True) if not far]
        if not any(
            rotated_iou(corners[index], corners[other], areas[index], areas[other]) >= threshold
            for other in near
        ):
            keep.append(index)
    return np.array(keep, np.int64)


def bev_corners(boxes: np.ndarray) -> np.ndarray:
    """Return the corners (n, 4, 2) of (n, 5) boxes, counter-clockwise where both sizes are positive."""
    half = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2 * boxes[:, None, 2:4]
    cos, sin = np.cos(boxes[:, None, 4]), np.sin(boxes[:, None, 4])
    turned = np.stack([cos * half[..., 0] - sin * half[..., 1], sin * half[..., 0] + cos * half[..., 1]], -1)
    return boxes[:, None, :2] + turned


def rotated_iou(one: np.ndarray, two: np.ndarray, area_one: float, area_two: float) -> float:
    """Return the intersection over union of two convex counter-clockwise polygons (k, 2)."""
    overlap = polygon_area(clip_polygon(one, two))
    union = area_one + area_two - overlap
    return overlap / union if union > 0 else 0.0


def clip_polygon(subject: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return the part (m, 2) of a polygon inside a convex counter-clockwise one (Sutherland and Hodgman)."""
    points = subject
    for start, end in zip(window, np.roll(window, -1, axis=0), strict=True):
        if len(points) == 0:
            break
        edge, offset = end - start, points - start
        side = edge[0] * offset[:, 1] - edge[1] * offset[:, 0]  # positive inside
        clipped = []
        for index in range(len(points)):
            here, before = side[index], side[index - 1]
            if (here >= 0) != (before >= 0):
                step = points[index] - points[index - 1]
                clipped.append(points[index - 1] + step * (before / (before - here)))
            if here >= 0:
                clipped.append(points[index])
        points = np.array(clipped).reshape(-1, 2)
    return points


def polygon_area(points: np.ndarray) -> float:
    """Return the area of a counter-clockwise polygon (k, 2); 0 for less than three points."""
    if len(points) < 3:
        return 0.0
    following = np.roll(points, -1, axis=0)
    return float(points[:, 0] @ following[:, 1] - points[:, 1] @ following[:, 0]) / 2
