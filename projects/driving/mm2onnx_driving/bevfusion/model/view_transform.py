"""Pictures to the bird's-eye view: features times depth distributions, summed in cells.

Glossary: B samples, N cameras, S = B N, H, W pictures of the network, C channels, D depth bins, h, w cells of
a feature map, X, Y cells of the bird's-eye view.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.utils import Registry, build_from_cfg
from torch import Tensor, nn

from mm2onnx_driving.bevfusion.model import rig as rigs
from mm2onnx_driving.bevfusion.model.rig import Rig
from mmdeploy_ext.base.errors import ConfigError, ShapeError
from mmdeploy_ext.upstream.operators.cells import CellTables, LastInCell, sum_by_tables, sum_in_order

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
        self.frustum = _constant(rigs.frustum(self.image_size, self.feature_size, tuple(dbound)))
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
        points = rigs.seen_points(self.frustum, rig)
        return rigs.cells_of(points, self.bx - self.dx / 2, self.dx, self.nx)

    def depth_maps(self, points: Sequence[Tensor], rig: Rig) -> Tensor:
        """Return `rig.depth_maps` (B, N, 1, H, W), metres."""
        return rigs.depth_maps(points, rig, self.image_size, self.last_in_pixel)

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
