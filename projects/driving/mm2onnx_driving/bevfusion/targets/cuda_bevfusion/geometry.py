"""Cells of the frustum's points, and LiDAR depth maps, which have no graph in this contract.

Glossary: N cameras, H, W pictures of the network, D depth bins, h, w cells of a feature map, X, Y cells of
the bird's-eye view, P points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mm2onnx_driving.bevfusion.facts import ViewFacts

NEAREST, FARTHEST = 1e-5, 1e5
"""Limits of depths in metres; points behind a camera get the first."""


def cells(calibration: Mapping[str, np.ndarray], view: ViewFacts) -> np.ndarray:
    """Return the cell `x * Y + y` of each point of the frustum, X * Y outside: (N, D, h, w) int64.

    `calibration`: matrices by name; `view`: frustum and grid, float32.
    """
    aug, camera, lidar, intrinsics = (
        calibration[name].astype(np.float64)
        for name in ('img_aug_matrix', 'camera2lidar', 'lidar_aug_matrix', 'camera_intrinsics')
    )
    depth, y, x = np.meshgrid(*map(np.float32, (view.depths, view.rows, view.columns)), indexing='ij')
    points = np.stack([x, y, depth], -1).astype(np.float64)
    pixels_to_lidar = camera[:, :3, :3] @ np.linalg.inv(intrinsics[:, :3, :3])
    corner = np.float32(view.centre) - np.float32(view.step) / np.float32(2)
    frustum_cells = np.empty((len(aug), *points.shape[:3]), np.int64)
    for index, matrix in enumerate(pixels_to_lidar):
        pixels = (points - aug[index, :3, 3]) @ np.linalg.inv(aug[index, :3, :3]).T
        pixels[..., :2] *= pixels[..., 2:]
        points_in_lidar = pixels @ matrix.T + camera[index, :3, 3]
        frustum_cells[index] = cell_numbers(points_in_lidar @ lidar[:3, :3].T + lidar[:3, 3], view, corner)
    return frustum_cells


def cell_numbers(points: np.ndarray, view: ViewFacts, corner: np.ndarray) -> np.ndarray:
    """Return the cells (...) int64 of points (..., 3), rounded to float32; `corner` (3,); metres."""
    x, y = view.count[:2]
    points = points.astype(np.float32).astype(np.float64)
    cell = np.trunc((points - corner.astype(np.float64)) / np.float32(view.step).astype(np.float64))
    inside = ((cell >= 0) & (cell < (x, y, 1))).all(-1)
    return np.where(inside, cell[..., 0] * y + cell[..., 1], x * y).astype(np.int64)


def depth_maps(
    points: np.ndarray, calibration: Mapping[str, np.ndarray], size: tuple[int, int]
) -> np.ndarray:
    """Return depth maps (N, 1, H, W) float32: depths of the LiDAR's points in metres, else 0.

    Args:
        points: (P, 3 or more), x, y, z first, in the augmented LiDAR frame, metres.
        calibration: matrices by name.
        size: (H, W) of the network's pictures.
    """
    lidar2image, img_aug, aug = (
        calibration[name].astype(np.float64) for name in ('lidar2image', 'img_aug_matrix', 'lidar_aug_matrix')
    )
    unaugmented = np.linalg.inv(aug[:3, :3]) @ (points[:, :3].astype(np.float64) - aug[:3, 3]).T
    maps = np.zeros((len(lidar2image), 1, *size), np.float32)
    for map_of_camera, projection, aug_2d in zip(maps[:, 0], lidar2image, img_aug, strict=True):
        projected = projection[:3, :3] @ unaugmented + projection[:3, 3:]
        depth = projected[2].clip(NEAREST, FARTHEST)
        pixels = aug_2d[:3, :3] @ np.stack([*(projected[:2] / depth), depth]) + aug_2d[:3, 3:]
        x, y, _ = pixels.astype(np.float32)
        inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
        # numpy assigns in order: the last point of a pixel counts
        map_of_camera[y[inside].astype(np.int64), x[inside].astype(np.int64)] = depth[inside]
    return maps
