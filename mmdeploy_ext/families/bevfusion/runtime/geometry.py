"""Where points of a frustum fall, and what the LiDAR measured in each pixel, where no graph computes it.

`cells` and `depth_maps` compute in float64 and round once, as the detector in PyTorch does; `engine_cells`
as NVIDIA's CUDA-BEVFusion does, in float32. Needs numpy only.

Glossary: N cameras, D depth bins, h, w cells of a feature map, X, Y cells of the bird's-eye view, P points.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

NEAREST, FARTHEST = 1e-5, 1e5
"""Metres that a depth is held between; a point behind a camera gets the first."""


@dataclasses.dataclass(frozen=True)
class View:
    """What decides the cells of a frustum, besides a calibration; as the model has it, float32.

    Attributes:
        image_size: (H, W) of the network's pictures, pixels.
        columns, rows: (w,), (h,) pixels that a feature map stands for.
        depths: (D,) of the bins, metres.
        centre: (3,) of the first cell, metres.
        step: (3,) of a cell, metres.
        count: cells along x, y and z; one along z.
    """

    image_size: tuple[int, int]
    columns: np.ndarray
    rows: np.ndarray
    depths: np.ndarray
    centre: np.ndarray
    step: np.ndarray
    count: tuple[int, int, int]

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> View:
        """Return the view that the metadata of a file describe."""
        sizes = {name: tuple(facts[name]) for name in ('image_size', 'count')}
        arrays = {name: np.float32(value) for name, value in facts.items() if name not in sizes}
        return cls(**sizes, **arrays)

    @property
    def shape(self) -> tuple[int, int]:
        """(X, Y)."""
        return self.count[:2]


def cells(calibration: Mapping[str, np.ndarray], view: View) -> np.ndarray:
    """Return the cell `x * Y + y` of each point of the frustum, X * Y for none: (N, D, h, w) int64."""
    aug, camera, lidar, intrinsics = (
        calibration[name].astype(np.float64)
        for name in ('img_aug_matrix', 'camera2lidar', 'lidar_aug_matrix', 'camera_intrinsics')
    )
    depth, y, x = np.meshgrid(view.depths, view.rows, view.columns, indexing='ij')
    points = np.stack([x, y, depth], -1).astype(np.float64)
    turns = camera[:, :3, :3] @ np.linalg.inv(intrinsics[:, :3, :3])
    corner = view.centre - view.step / np.float32(2)
    found = np.empty((len(aug), *points.shape[:3]), np.int64)
    for index, turn in enumerate(turns):
        seen = (points - aug[index, :3, 3]) @ np.linalg.inv(aug[index, :3, :3]).T
        seen[..., :2] *= seen[..., 2:]
        seen = seen @ turn.T + camera[index, :3, 3]
        found[index] = _numbers(seen @ lidar[:3, :3].T + lidar[:3, 3], view, corner)
    return found


def _numbers(points: np.ndarray, view: View, corner: np.ndarray) -> np.ndarray:
    """Return the cells of points (..., 3), rounded to float32; towards zero: cell 0 is wider than others."""
    x, y = view.shape
    points = points.astype(np.float32).astype(np.float64)
    cell = np.trunc((points - corner.astype(np.float64)) / view.step.astype(np.float64))
    inside = ((cell >= 0) & (cell < (x, y, 1))).all(-1)
    return np.where(inside, cell[..., 0] * y + cell[..., 1], x * y).astype(np.int64)


def engine_cells(calibration: Mapping[str, np.ndarray], view: View) -> np.ndarray:
    """Return the cells as CUDA-BEVFusion computes them: (N, D, h, w) int64.

    In float32, with the first camera's image augmentation for all of them and without that of the points.

    Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, CUDA-BEVFusion/src/bevfusion/camera-geometry.cu:90-157,
    its behaviour in own words.
    """
    aug, camera, intrinsics = (
        calibration[name].astype(np.float32)
        for name in ('img_aug_matrix', 'camera2lidar', 'camera_intrinsics')
    )
    sides = zip((view.rows, view.columns), view.image_size, strict=True)
    evenly = (
        np.arange(len(side), dtype=np.float32) * np.float32((size - 1) / (len(side) - 1))
        for side, size in sides
    )
    depth, y, x = np.meshgrid(view.depths, *evenly, indexing='ij')
    first = [x - aug[0, 0, 3], y - aug[0, 1, 3], depth - aug[0, 2, 3]]
    a = _turned(_adjugate_inverse(aug[0, :3, :3]), first)
    a = [a[0] * a[2], a[1] * a[2], a[2]]
    corner = view.centre.astype(np.float64) - view.step.astype(np.float64) / 2
    found = np.empty((len(camera), *depth.shape), np.int64)
    for index, pose in enumerate(camera):
        b = _turned(_adjugate_inverse(intrinsics[index, :3, :3]), a)
        seen = [value + pose[axis, 3] for axis, value in enumerate(_turned(pose[:3, :3], b))]
        found[index] = _numbers(np.stack(seen, -1).astype(np.float64), view, corner)
    return found


def _turned(matrix: np.ndarray, point: list[np.ndarray]) -> list[np.ndarray]:
    return [row[0] * point[0] + row[1] * point[1] + row[2] * point[2] for row in matrix]


def _adjugate_inverse(matrix: np.ndarray) -> np.ndarray:
    rows = [np.cross(matrix[(axis + 1) % 3], matrix[(axis + 2) % 3]) for axis in range(3)]
    return (np.stack(rows, 1) / np.dot(matrix[0], rows[0])).astype(np.float32)


def depth_maps(
    points: np.ndarray, calibration: Mapping[str, np.ndarray], size: tuple[int, int]
) -> np.ndarray:
    """Return what the LiDAR measured in each pixel, metres; 0 where nothing: (N, 1, H, W) float32.

    Points (P, 3 or more) are in the augmented LiDAR frame, metres; of those in one pixel the last of the
    cloud counts. `size` is (H, W) of the network's pictures.
    """
    lidar2image, img_aug, aug = (
        calibration[name].astype(np.float64) for name in ('lidar2image', 'img_aug_matrix', 'lidar_aug_matrix')
    )
    plain = np.linalg.inv(aug[:3, :3]) @ (points[:, :3].astype(np.float64) - aug[:3, 3]).T
    found = np.zeros((len(lidar2image), 1, *size), np.float32)
    for map_of_camera, pose, cut in zip(found[:, 0], lidar2image, img_aug, strict=True):
        seen = pose[:3, :3] @ plain + pose[:3, 3:]
        depth = seen[2].clip(NEAREST, FARTHEST)
        x, y, _ = (cut[:3, :3] @ np.stack([*(seen[:2] / depth), depth]) + cut[:3, 3:]).astype(np.float32)
        inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
        # numpy assigns in order, so that the last point of a pixel stays
        map_of_camera[y[inside].astype(np.int64), x[inside].astype(np.int64)] = depth[inside]
    return found
