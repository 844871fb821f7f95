"""From feature maps of cameras to the bird's-eye view: depth distributions times features, summed in cells.

The places of points are computed in float64 and rounded to float32 once, so the cell of a point depends on no
engine. Upstream computes in float32; points near the border of a cell may be in the other one.

Source: HuangJunJie2017/BEVDet f71858d, necks/view_transformer.py:84-260, 703-724.

Glossary: B samples, N cameras, C channels, D depth bins, h, w cells of a feature map, Y, X rows and columns
of the bird's-eye view.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models import NECKS
from torch import Tensor, nn

from mm2onnx_driving.layers.lift_splat.depth_net import DepthNet
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.operators.cells import sum_in_order


def inverse(matrix: Tensor) -> Tensor:
    """Return the inverse (..., 3, 3) by cofactors, in operators of every engine."""
    first, second, third = matrix.unbind(-2)
    columns = _cross(second, third), _cross(third, first), _cross(first, second)
    determinant = (first * columns[0]).sum(-1)[..., None, None]
    return torch.stack(columns, -1) / determinant


def _cross(left: Tensor, right: Tensor) -> Tensor:
    return left.roll(-1, -1) * right.roll(-2, -1) - left.roll(-2, -1) * right.roll(-1, -1)


def frustum_points(
    sensor2keyego: Tensor, intrins: Tensor, post_rots: Tensor, post_trans: Tensor, frustum: Tensor
) -> Tensor:
    """Return the points of a frustum in the key ego frame, (..., D, h, w, 3) float32 metres.

    Args:
        sensor2keyego: (..., 4, 4), camera to key ego.
        intrins: (..., 3, 3), camera to picture as it was taken.
        post_rots: (..., 3, 3), picture as it was taken to the network's.
        post_trans: (..., 3), the translation behind it, pixels.
        frustum: (D, h, w, 3), pixels x, y of the network's picture and depth, metres.
    """
    pixels = frustum.flatten(0, 2).double() - post_trans.double()[..., None, :]
    points = pixels @ inverse(post_rots.double()).transpose(-1, -2)
    points = torch.cat([points[..., :2] * points[..., 2:], points[..., 2:]], -1)
    poses = sensor2keyego.double()
    turn = poses[..., :3, :3] @ inverse(intrins.double())
    moved = points @ turn.transpose(-1, -2) + poses[..., None, :3, 3]
    return moved.float().unflatten(-2, frustum.shape[:3])


def cells_of(points: Tensor, low: Tensor, step: Tensor, count: Sequence[int]) -> Tensor:
    """Return the cell `y * X + x` of points (..., 3) m, X * Y outside of the grid; int64.

    Truncated toward zero: points up to a cell below the lower border are in the first cell.
    """
    cell = ((points - low) / step).long()
    limits = torch.tensor(list(count), device=points.device)
    inside = ((cell >= 0) & (cell < limits)).all(-1)
    return torch.where(inside, cell[..., 1] * count[0] + cell[..., 0], count[0] * count[1])


def camera_vectors(sensor2keyego: Tensor, intrins: Tensor, post_rots: Tensor, post_trans: Tensor) -> Tensor:
    """Return the vectors (..., N, 27) that the depth network takes, without an augmentation of the view."""
    ones, zeros = torch.ones_like(intrins[..., 0, 0]), torch.zeros_like(intrins[..., 0, 0])
    numbers = [intrins[..., 0, 0], intrins[..., 1, 1], intrins[..., 0, 2], intrins[..., 1, 2]]
    for row in (0, 1):
        numbers += [post_rots[..., row, 0], post_rots[..., row, 1], post_trans[..., row]]
    numbers += [ones, zeros, zeros, ones, ones]
    return torch.cat([torch.stack(numbers, -1), sensor2keyego[..., :3, :].flatten(-2)], -1)


@registered_if_named(NECKS)
class BEVDetViewTransformer(nn.Module):
    """The view transformer that `BEVDet` builds for a config's `LSSViewTransformer`; mmdet3d has another one.

    Args:
        grid_config: 'x', 'y', 'z': lower and upper border and step, metres; 'depth': first, end (excluded)
            and step of the depth bins.
        input_size: (H, W) of the network's pictures, pixels.
        downsample: pixels per cell of the feature map.
    """

    def __init__(
        self,
        grid_config: Mapping[str, Sequence[float]],
        input_size: Sequence[int],
        downsample: int = 16,
        in_channels: int = 512,
        out_channels: int = 64,
        sid: bool = False,
        collapse_z: bool = True,
        **unused: Any,
    ) -> None:
        super().__init__()
        axes = [grid_config[axis] for axis in 'xyz']
        self.grid_lower_bound = torch.tensor([float(low) for low, _, _ in axes])
        self.grid_interval = torch.tensor([float(step) for _, _, step in axes])
        self.grid_size = torch.tensor([(high - low) / step for low, high, step in axes], device='cpu')
        self.count = tuple(round((high - low) / step) for low, high, step in axes)
        if sid or not collapse_z or self.count[2] != 1:
            raise ConfigError(
                f'{type(self).__name__}: sid={sid}, collapse_z={collapse_z}, {self.count[2]} cells along z; '
                f'expected False, True and 1, as in the published configs'
            )
        height, width = input_size
        depths = torch.arange(*grid_config['depth'], dtype=torch.float32)
        rows = torch.linspace(0, height - 1, height // downsample, dtype=torch.float32)
        columns = torch.linspace(0, width - 1, width // downsample, dtype=torch.float32)
        depth, row, column = torch.meshgrid(depths, rows, columns, indexing='ij')
        self.frustum = torch.stack([column, row, depth], -1)
        self.D, self.in_channels, self.out_channels = len(depths), in_channels, out_channels
        self.depth_net: nn.Module = nn.Conv2d(in_channels, self.D + out_channels, 1)

    def pool(self, cells: Tensor, depth: Tensor, features: Tensor) -> Tensor:
        """Return the sums (B, C, Y, X) of features (B N, C, h, w) times depth (B N, D, h, w) in each cell."""
        columns, rows, _ = self.count
        lifted = depth[..., None] * features.permute(0, 2, 3, 1)[:, None]
        lifted = lifted.reshape(len(cells), -1, features.shape[1])
        pairs = zip(cells.flatten(1), lifted, strict=True)
        sums = [sum_in_order(slots, points, rows * columns) for slots, points in pairs]
        return torch.stack(sums).transpose(1, 2).unflatten(2, (rows, columns))

    def get_mlp_input(self, sensor2keyego: Tensor, ego2global: Tensor, *matrices: Tensor) -> Tensor | None:
        """Return the camera vectors (B, N, 27) of the matrices and bda; None if depth knows no camera."""
        return None

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the view (B, C, Y, X) and the depth distributions (B N, D, h, w).

        Args:
            inputs: feature maps (B, N, in_channels, h, w), sensor2keyego, ego2global (B, N, 4, 4; the second
                is not used), intrins, post_rots (B, N, 3, 3), post_trans (B, N, 3), bda (B, 3, 3), which is
                the unit matrix at test time, and of BEVDepth the camera vectors (B, N, 27).
        """
        maps, sensor2keyego, _, *matrices = inputs[:6]
        vectors = [vector for vector in inputs[7:8] if vector is not None]
        joint = self.depth_net(maps.flatten(0, 1), *vectors)
        depth, features = joint[:, : self.D].softmax(1), joint[:, self.D : self.D + self.out_channels]
        points = frustum_points(sensor2keyego, *matrices, self.frustum.to(maps.device))
        low, step = self.grid_lower_bound.to(points), self.grid_interval.to(points)
        return self.pool(cells_of(points, low, step, self.count), depth, features), depth


@registered_if_named(NECKS)
class LSSViewTransformerBEVDepth(BEVDetViewTransformer):
    """The view transformer with a depth network that knows the camera."""

    def __init__(
        self, depthnet_cfg: Mapping[str, Any], loss_depth_weight: float = 3.0, **config: Any
    ) -> None:
        super().__init__(**config)
        self.depth_net = DepthNet(
            self.in_channels, self.in_channels, self.out_channels, self.D, **depthnet_cfg
        )

    def get_mlp_input(self, sensor2keyego: Tensor, ego2global: Tensor, *matrices: Tensor) -> Tensor:
        return camera_vectors(sensor2keyego, *matrices[:3])
