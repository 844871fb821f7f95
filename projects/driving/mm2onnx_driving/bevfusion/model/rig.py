"""The rig of a frame: matrices, depth maps of points in pictures, and cells of a frustum's points.

Computed in float64 with coordinates rounded to float32 once, so that no engine, device or order of operations
decides the pixel or cell of a point. Upstream's float32 differs for points within rounding of a border.

Frames: LiDAR (x right, y forward, z up, metres) and augmented LiDAR, camera, image (pixels).
Glossary: B samples, N cameras, H, W pictures of the network, P points, D depth bins, h, w cells of a feature
map, X, Y cells of the bird's-eye view.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mm2onnx_driving.layers.matrices import inverse
from mmdeploy_ext.runtime.calibration import MATRICES, check_calibration
from mmdeploy_ext.upstream.operators.cells import LastInCell

NEAREST, FARTHEST = 1e-5, 1e5
"""Limits of depths, metres; a point behind a camera gets the first."""


@dataclasses.dataclass(frozen=True)
class Rig:
    """Matrices of a batch, float32; graphs leave unused ones at None.

    Attributes:
        img_aug_matrix: (B, N, 4, 4) original picture -> input of the network.
        lidar_aug_matrix: (B, 4, 4) LiDAR -> augmented LiDAR.
        camera_intrinsics: (B, N, 4, 4) camera -> original picture.
        camera2lidar: (B, N, 4, 4) camera -> LiDAR, before the augmentation of points.
        lidar2image: (B, N, 4, 4) LiDAR before the augmentation -> original picture.
    """

    img_aug_matrix: Tensor
    lidar_aug_matrix: Tensor
    camera_intrinsics: Tensor | None = None
    camera2lidar: Tensor | None = None
    lidar2image: Tensor | None = None


def read_rig(metas: Sequence[Mapping[str, object]], device: torch.device, cameras: int) -> Rig:
    """Return the matrices (N, 4, 4) of metas with `Rig`'s keys; `lidar_aug_matrix` (4, 4) is optional."""
    matrices = [dict(dict(lidar_aug_matrix=np.eye(4, dtype=np.float32)), **meta) for meta in metas]
    for sample, matrices_of_sample in enumerate(matrices):
        check_calibration(matrices_of_sample, cameras, f'sample {sample}')
    stacked = {name: np.stack([of_sample[name] for of_sample in matrices]) for name in MATRICES}
    return Rig(**{name: torch.from_numpy(value).float().to(device) for name, value in stacked.items()})


def _rotated(matrix: Tensor, points: Tensor) -> Tensor:
    return (matrix @ points.unsqueeze(-1)).squeeze(-1)


def depth_maps(points: Sequence[Tensor], rig: Rig, size: tuple[int, int], last: LastInCell) -> Tensor:
    """Return the depth maps (B, N, 1, H, W) float32: depths of points in metres, 0 in other pixels.

    Of several points in a pixel the last counts; points behind a camera count as `NEAREST` metres away.
    Points are (P, 3 or more) per sample in the augmented LiDAR frame. `size` is (H, W); `last` is made for H
    * W cells.

    Source: mit-han-lab/bevfusion db75150, models/vtransforms/base.py:238-278; there the device decides which
    point of a pixel counts.
    """
    (height, width), maps = size, []
    for sample, cloud in enumerate(points):
        aug = rig.lidar_aug_matrix[sample].double()
        unaugmented = inverse(aug[:3, :3]) @ (cloud[:, :3].double() - aug[:3, 3]).T
        lidar2image, img_aug = rig.lidar2image[sample].double(), rig.img_aug_matrix[sample].double()
        projected = lidar2image[:, :3, :3] @ unaugmented + lidar2image[:, :3, 3:]
        depth = projected[:, 2:].clamp(NEAREST, FARTHEST)
        pixels = img_aug[:, :3, :3] @ torch.cat([projected[:, :2] / depth, depth], 1) + img_aug[:, :3, 3:]
        x, y = pixels[:, 0].float(), pixels[:, 1].float()
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        cell = torch.where(inside, y.long() * width + x.long(), height * width)
        maps.append(last(cell, depth[:, 0].float()).unflatten(1, (1, height, width)))
    return torch.stack(maps)


def frustum(image: tuple[int, int], cells: tuple[int, int], depths: tuple[float, float, float]) -> Tensor:
    """Return the points of a feature map at all depths: (D, h, w, 3), pixels x, y and depth in metres.

    `image` is (H, W), `cells` (h, w); `depths` are first, end (excluded) and step, metres.
    """
    bins = torch.arange(*depths, dtype=torch.float32)
    x = torch.linspace(0, image[1] - 1, cells[1], dtype=torch.float32)
    y = torch.linspace(0, image[0] - 1, cells[0], dtype=torch.float32)
    depth, rows, columns = torch.meshgrid(bins, y, x, indexing='ij')
    return torch.stack([columns, rows, depth], -1)


def seen_points(frustum: Tensor, rig: Rig) -> Tensor:
    """Return the points (B, N, D, h, w, 3) float64 of a frustum in the augmented LiDAR frame, m."""

    def for_points(matrix: Tensor) -> Tensor:  # (B, N, ...) -> (B, N, 1, 1, 1, ...)
        return matrix[:, :, None, None, None]

    aug, camera = rig.img_aug_matrix.double(), rig.camera2lidar.double()
    points = _rotated(for_points(inverse(aug[..., :3, :3])), frustum.double() - for_points(aug[..., :3, 3]))
    points = torch.cat([points[..., :2] * points[..., 2:], points[..., 2:]], -1)
    turn = camera[..., :3, :3] @ inverse(rig.camera_intrinsics.double()[..., :3, :3])
    points = _rotated(for_points(turn), points) + for_points(camera[..., :3, 3])
    lidar = rig.lidar_aug_matrix.double()[:, None]
    return _rotated(for_points(lidar[..., :3, :3]), points) + for_points(lidar[..., :3, 3])


def cells_of(points: Tensor, first: Tensor, step: Tensor, count: Tensor) -> Tensor:
    """Return the cell `x * Y + y` of points (..., 3) m, X * Y for points outside the grid; int64.

    The grid has its corner at `first` (3,) m, cells of `step` (3,) m, and `count` (3,) cells, one along z.

    Source: mit-han-lab/bevfusion db75150, models/vtransforms/base.py:136-146.
    """
    cell = ((points.float().double() - first.double()) / step.double()).long()
    inside = ((cell >= 0) & (cell < count)).all(-1)
    return torch.where(inside, cell[..., 0] * count[1] + cell[..., 1], count[0] * count[1])
