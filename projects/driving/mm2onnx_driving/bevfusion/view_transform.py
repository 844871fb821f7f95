"""Pictures to the bird's-eye view: features times depth distributions, summed in cells.

The rig of a frame is computed in float64 with coordinates rounded to float32 once, so that no engine, device
or order of operations decides the pixel or cell of a point. Upstream's float32 differs for points within
rounding of a border.

Frames: LiDAR (x right, y forward, z up, metres) and augmented LiDAR, camera, image (pixels).
Glossary: B samples, N cameras, S = B N, H, W pictures of the network, P points, C channels, D depth bins, h,
w cells of a feature map, X, Y cells of the bird's-eye view.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.utils import Registry, build_from_cfg
from torch import Tensor, nn

from mm2onnx_driving.layers.lift_splat import inverse
from mmdeploy_ext.base.errors import ConfigError, ShapeError
from mmdeploy_ext.runtime.calibration import MATRICES, check_calibration
from mmdeploy_ext.upstream.operators.cells import CellTables, LastInCell, sum_by_tables, sum_in_order

# ---- rig: matrices, depth maps of points in pictures, cells of a frustum's points


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


# ---- view

VIEW_TRANSFORMS = Registry('view transform')


def build_view_transform(cfg: dict[str, Any]) -> nn.Module:
    return build_from_cfg(cfg, VIEW_TRANSFORMS)


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def conv_block(inside: int, outside: int, kernel: int, stride: int, bias: bool) -> list[nn.Module]:
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=bias)
    return [conv, nn.BatchNorm2d(outside), nn.ReLU(True)]


class ViewTransform(nn.Module):
    """The base class of both view transforms: the grid, the frustum, and the sums in cells.

    Args:
        in_channels, out_channels: channels of the feature maps, and C.
        image_size, feature_size: (H, W), pixels, and (h, w).
        xbound, ybound, zbound: lower and upper border and step of the grid, metres; one cell along z.
        dbound: first depth, end (excluded) and step of the depth bins, metres.
        downsample: 1, or 2: three convolutions behind `pool`, the second with stride 2.

    Source: mit-han-lab/bevfusion db75150, models/vtransforms/base.py.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: Sequence[int],
        feature_size: Sequence[int],
        xbound: Sequence[float],
        ybound: Sequence[float],
        zbound: Sequence[float],
        dbound: Sequence[float],
        downsample: int = 1,
    ) -> None:
        super().__init__()
        self.in_channels, self.C = in_channels, out_channels
        self.image_size, self.feature_size = tuple(image_size), tuple(feature_size)
        bounds = (xbound, ybound, zbound)
        self.dx = _constant(torch.tensor([bound[2] for bound in bounds]))
        self.bx = _constant(torch.tensor([bound[0] + bound[2] / 2 for bound in bounds]))
        count = [int((bound[1] - bound[0]) / bound[2]) for bound in bounds]  # truncated, as upstream does
        self.nx = _constant(torch.tensor(count))
        self.shape = tuple(count[:2])
        if count[2] != 1:
            raise ConfigError(
                f'{type(self).__name__}: zbound={list(zbound)} gives {count[2]} cells, expected 1'
            )
        self.frustum = _constant(frustum(self.image_size, self.feature_size, tuple(dbound)))
        self.D = len(self.frustum)
        self.last_in_pixel = LastInCell(self.image_size[0] * self.image_size[1])
        self.tables = CellTables(count[0] * count[1])
        if downsample not in (1, 2):
            raise ConfigError(f'{type(self).__name__}: downsample={downsample}; expected 1 or 2')
        self.downsample: nn.Module = nn.Identity()
        if downsample == 2:
            blocks = [conv_block(self.C, self.C, 3, stride, bias=False) for stride in (1, 2, 1)]
            self.downsample = nn.Sequential(*(layer for block in blocks for layer in block))

    def split(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of the bins (S, D, h, w), which add up to 1, and features (S, C, h, w).

        `joint` is (S, D + C, h, w).
        """
        return joint[:, : self.D].softmax(1), joint[:, self.D : self.D + self.C]

    def cells(self, rig: Rig) -> Tensor:
        """Return the cell `x * Y + y` of points of the frustum, (B, N, D, h, w) int64; X * Y outside."""
        points = seen_points(self.frustum, rig)
        return cells_of(points, self.bx - self.dx / 2, self.dx, self.nx)

    def depth_maps(self, points: Sequence[Tensor], rig: Rig) -> Tensor:
        """Return `rig.depth_maps` (B, N, 1, H, W), metres."""
        return depth_maps(points, rig, self.image_size, self.last_in_pixel)

    def pool(self, weights: Tensor, features: Tensor, cells: Tensor) -> Tensor:
        """Return weighted features summed in each cell, (B, C, X, Y): rows are x, columns y.

        Weights are (S, D, h, w), features (S, C, h, w), cells (B, N, D, h, w).
        """
        lifted = weights[..., None] * features.permute(0, 2, 3, 1)[:, None]
        lifted = lifted.reshape(cells.shape[0], -1, self.C)
        pairs = zip(cells.flatten(1), lifted, strict=True)
        sums = [sum_in_order(slots, points, self.tables.count) for slots, points in pairs]
        return torch.stack(sums).transpose(1, 2).unflatten(2, self.shape)

    def pool_tables(self, cells: Tensor) -> tuple[Tensor, ...]:
        """Return the tables of `pool_by_tables` of cells (N, D, h, w)."""
        first, *further_tables = self.tables(cells.flatten())
        depths, pixels = cells[0].numel(), cells[0, 0].numel()
        points = (first - 1).clamp(min=0)
        return first, points // depths * pixels + points % pixels, *further_tables

    def pool_by_tables(self, weights: Tensor, features: Tensor, tables: Sequence[Tensor]) -> Tensor:
        """Return `pool` of one sample, (1, C, X, Y), by gathers alone.

        Weights are (N, D, h, w), features (N, C, h, w).
        """
        first, pixels, second, third, slots = tables
        factors = torch.nn.functional.pad(weights.flatten(), (1, 0))[first]
        rows = features.permute(0, 2, 3, 1).reshape(-1, self.C)[pixels]
        sums = sum_by_tables((factors[:, None] @ rows)[:, 0], (second, third), slots)
        return sums.T.unflatten(1, self.shape)[None]


@VIEW_TRANSFORMS.register_module()
class LSSTransform(ViewTransform):
    """The view transform with depths from pictures alone; parameters have upstream's names.

    Source: mit-han-lab/bevfusion db75150, models/vtransforms/lss.py.
    """

    uses_points = False

    def __init__(self, in_channels: int, out_channels: int, **options: Any) -> None:
        super().__init__(in_channels, out_channels, **options)
        self.depthnet = nn.Conv2d(in_channels, self.D + self.C, 1)

    def lift(self, maps: Tensor, depth: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.split(self.depthnet(maps))


@VIEW_TRANSFORMS.register_module()
class DepthLSSTransform(ViewTransform):
    """The view transform with depths from pictures and from depth maps of points.

    Source: mit-han-lab/bevfusion db75150, models/vtransforms/depth_lss.py; later commits take six channels.
    """

    uses_points = True

    def __init__(self, in_channels: int, out_channels: int, **options: Any) -> None:
        super().__init__(in_channels, out_channels, **options)
        self.dtransform = nn.Sequential(
            *conv_block(1, 8, 1, 1, bias=True),
            *conv_block(8, 32, 5, 4, bias=True),
            *conv_block(32, 64, 5, 2, bias=True),
        )
        self.depthnet = nn.Sequential(
            *conv_block(in_channels + 64, in_channels, 3, 1, bias=True),
            *conv_block(in_channels, in_channels, 3, 1, bias=True),
            nn.Conv2d(in_channels, self.D + self.C, 1),
        )

    def lift(self, maps: Tensor, depth: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if depth is None:
            raise ShapeError('DepthLSSTransform needs depth maps, got None')
        return self.split(self.depthnet(torch.cat([self.dtransform(depth), maps], 1)))
