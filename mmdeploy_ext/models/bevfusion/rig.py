"""The geometry of cameras: matrices of a frame, points in pictures, and cells of the pixels of a picture.

Everything is computed in float64 and places are rounded to float32 once: which pixel or cell a point falls
into then depends on no engine, device or order of operations, also where a rig puts points on a border.
Upstream computes in float32, and differs in what is within rounding of a border.

Glossary: B samples, N cameras, D depth bins, h, w cells of a feature map, X, Y cells of the bird's-eye view.
Frames: LiDAR (x right, y forward, z up, metres; augmented where it says so), camera, image (pixels).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmdeploy_ext.exporting.ops.cells import LastInCell
from mmdeploy_ext.families.bevfusion.runtime.frames import MATRICES, check_calibration

NEAREST, FARTHEST = 1e-5, 1e5
"""Metres that a depth is held between; a point behind a camera gets the first."""


@dataclasses.dataclass(frozen=True)
class Rig:
    """Matrices of a batch, float32; None where nothing asks for them.

    Attributes:
        camera_intrinsics: (B, N, 4, 4) camera -> picture as it was taken.
        camera2lidar: (B, N, 4, 4), before the augmentation of points.
        lidar2image: (B, N, 4, 4) LiDAR before the augmentation -> picture as it was taken.
        img_aug_matrix: (B, N, 4, 4) picture as it was taken -> input of the network.
        lidar_aug_matrix: (B, 4, 4) LiDAR -> augmented LiDAR.
    """

    img_aug_matrix: Tensor
    lidar_aug_matrix: Tensor
    camera_intrinsics: Tensor | None = None
    camera2lidar: Tensor | None = None
    lidar2image: Tensor | None = None


def read_rig(metas: Sequence[Mapping[str, object]], device: torch.device, cameras: int) -> Rig:
    """Return the matrices of a batch, of metas with the keys of `Rig` as arrays.

    They are (N, 4, 4); that of the points is (4, 4) or missing.

    Raises:
        DataError: a matrix lacks, is not finite, or has no inverse.
        ShapeError: of another number of cameras.
    """
    matrices = [dict(dict(lidar_aug_matrix=np.eye(4, dtype=np.float32)), **meta) for meta in metas]
    for sample, by_name in enumerate(matrices):
        check_calibration(by_name, cameras, f'sample {sample}')
    stacked = {name: np.stack([by_name[name] for by_name in matrices]) for name in MATRICES}
    return Rig(**{name: torch.from_numpy(value).float().to(device) for name, value in stacked.items()})


def inverse(matrix: Tensor) -> Tensor:
    """Return the inverse (..., 3, 3) of matrices by their cofactors, in operators that every engine has."""
    first, second, third = matrix.unbind(-2)
    columns = _cross(second, third), _cross(third, first), _cross(first, second)
    determinant = (first * columns[0]).sum(-1)[..., None, None]
    return torch.stack(columns, -1) / determinant


def _cross(first: Tensor, second: Tensor) -> Tensor:
    return first.roll(-1, -1) * second.roll(-2, -1) - first.roll(-2, -1) * second.roll(-1, -1)


def _turned(matrix: Tensor, points: Tensor) -> Tensor:
    """Return points (..., 3) turned by matrices (..., 3, 3) of the same leading axes."""
    return (matrix @ points.unsqueeze(-1)).squeeze(-1)


def depth_maps(points: Sequence[Tensor], rig: Rig, size: tuple[int, int], last: LastInCell) -> Tensor:
    """Return what the LiDAR measured in each pixel, metres; 0 where nothing: (B, N, 1, H, W) float32.

    Of points in one pixel the last of the cloud counts, whatever the device and its threads; points behind a
    camera count as `NEAREST` metres away. The points, per sample (P, 3 or more) in the augmented LiDAR frame,
    stay as they are. `size` is (H, W) of the network's pictures, `last` has as many cells.

    Source: mit-han-lab/bevfusion db75150, models/vtransforms/base.py:238-278, which leaves the winner of a
    pixel to the device, and shifts its points in place.
    """
    maps = []
    for sample, cloud in enumerate(points):
        aug = rig.lidar_aug_matrix[sample].double()
        plain = inverse(aug[:3, :3]) @ (cloud[:, :3].double() - aug[:3, 3]).T
        matrices = rig.lidar2image[sample].double(), rig.img_aug_matrix[sample].double()
        maps.append(_depth_of_cameras(plain, *matrices, size, last))
    return torch.stack(maps)


def _depth_of_cameras(
    plain: Tensor, lidar2image: Tensor, img_aug: Tensor, size: tuple[int, int], last: LastInCell
) -> Tensor:
    """Return (N, 1, H, W) for points (3, P) of one sample."""
    height, width = size
    in_camera = lidar2image[:, :3, :3] @ plain + lidar2image[:, :3, 3:]
    depth = in_camera[:, 2:].clamp(NEAREST, FARTHEST)
    pixels = img_aug[:, :3, :3] @ torch.cat([in_camera[:, :2] / depth, depth], 1) + img_aug[:, :3, 3:]
    x, y = pixels[:, 0].float(), pixels[:, 1].float()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    cell = torch.where(inside, y.long() * width + x.long(), height * width)
    return last(cell, depth[:, 0].float()).unflatten(1, (1, height, width))


def frustum(image: tuple[int, int], cells: tuple[int, int], depths: tuple[float, float, float]) -> Tensor:
    """Return the points that a feature map stands for: (D, h, w, 3), pixels x, y and depth in metres.

    `image` is (H, W) of the network's pictures, `cells` (h, w); `depths` are first, end (excluded) and step,
    metres.
    """
    bins = torch.arange(*depths, dtype=torch.float32)
    x = torch.linspace(0, image[1] - 1, cells[1], dtype=torch.float32)
    y = torch.linspace(0, image[0] - 1, cells[0], dtype=torch.float32)
    depth, rows, columns = torch.meshgrid(bins, y, x, indexing='ij')
    return torch.stack([columns, rows, depth], -1)


def seen_points(frustum: Tensor, rig: Rig) -> Tensor:
    """Return where the points of a frustum are: (B, N, D, h, w, 3) in the augmented LiDAR frame, metres."""

    def over(matrix: Tensor) -> Tensor:  # (B, N, ...) -> (B, N, 1, 1, 1, ...)
        return matrix[:, :, None, None, None]

    aug, camera = rig.img_aug_matrix.double(), rig.camera2lidar.double()
    points = _turned(over(inverse(aug[..., :3, :3])), frustum.double() - over(aug[..., :3, 3]))
    points = torch.cat([points[..., :2] * points[..., 2:], points[..., 2:]], -1)
    turn = camera[..., :3, :3] @ inverse(rig.camera_intrinsics.double()[..., :3, :3])
    points = _turned(over(turn), points) + over(camera[..., :3, 3])
    lidar = rig.lidar_aug_matrix.double()[:, None]
    return _turned(over(lidar[..., :3, :3]), points) + over(lidar[..., :3, 3])


def cells_of(points: Tensor, first: Tensor, step: Tensor, count: Tensor) -> Tensor:
    """Return the cell `x * Y + y` of points (..., 3) m, one past the last outside; int64.

    Towards zero, so that cell 0 is wider than others. The grid has its corner at `first` (3,) m, cells of
    `step` (3,) m, and `count` (3,) cells, one of them along z.

    Source: mit-han-lab/bevfusion db75150, models/vtransforms/base.py:136-146.
    """
    cell = ((points.float().double() - first.double()) / step.double()).long()
    inside = ((cell >= 0) & (cell < count)).all(-1)
    return torch.where(inside, cell[..., 0] * count[1] + cell[..., 1], count[0] * count[1])
