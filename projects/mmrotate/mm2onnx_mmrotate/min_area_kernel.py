"""A kernel on the CPU for mmcv's `min_area_polygons`, which has one for GPUs alone.

Heads of points can be compared with PyTorch by it. It walks along the convex hull in float64, as mmcv's
kernel does in float32; the graphs compute the same in another way (`dense/smallest_rectangle.py`). Where
rounding decides in mmcv's kernel, between rectangles on the sides of a triangle, this kernel and the graphs
take the same one.
"""

import contextlib
import sys
from collections.abc import Iterator

import cv2
import numpy as np
import torch

from mm2onnx_mmrotate.dense.smallest_rectangle import TIE

MODULE = 'mmcv.ops.min_area_polygons'
"""Looked up in `sys.modules`: `mmcv.ops` has a function of this name."""


def smallest_polygon(points: np.ndarray) -> np.ndarray:
    """Return the corners (4, 2) float64 of the smallest rectangle around points (n, 2) float32.

    The rectangle's axes are x and y turned by less than 90 degrees. The first corner has the smallest values
    of both; the others follow along x, then along y: clockwise in a picture.
    """
    hull = cv2.convexHull(points)[:, 0].astype(np.float64)
    rectangles = [(0.0, 1.0, np.repeat(hull[:1], 4, 0))] if len(hull) == 1 else []
    for start, end in zip(hull, np.roll(hull, -1, 0), strict=True):
        side = end - start
        length = np.hypot(*side)
        if length == 0:
            continue
        angle = np.arctan2(side[1], side[0]) % (np.pi / 2)
        axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        low, high = (hull @ axes.T).min(0), (hull @ axes.T).max(0)
        corners = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
        rectangles.append((np.prod(high - low), np.cos(angle), corners @ axes))
    smallest = min(area for area, _, _ in rectangles) * (1 + TIE)
    tied = [(cos, corners) for area, cos, corners in rectangles if area <= smallest]
    return max(tied, key=lambda rectangle: rectangle[0])[1]


@contextlib.contextmanager
def min_area_polygons_on_cpu() -> Iterator[None]:
    """Inside the block `mmcv.ops.min_area_polygons` takes tensors on the CPU, too."""
    import mmcv.ops  # noqa: F401

    extension = sys.modules[MODULE].ext_module
    gpu_kernel = extension.min_area_polygons

    def kernel(pointsets: torch.Tensor, polygons: torch.Tensor) -> None:
        if pointsets.is_cuda:
            gpu_kernel(pointsets, polygons)
            return
        for row, points in enumerate(pointsets.detach().numpy().reshape(len(pointsets), -1, 2)):
            polygons[row] = torch.from_numpy(smallest_polygon(points).astype(np.float32).reshape(-1))

    extension.min_area_polygons = kernel
    try:
        yield
    finally:
        extension.min_area_polygons = gpu_kernel
