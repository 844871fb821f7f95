"""Detectors that lift pictures, in PyTorch: what decides the cell of a point."""

import math

import torch
from torch import nn

from mm2onnx_driving.common.lift import placed_in_float64
from mm2onnx_driving.layers.lift_splat import cells_of, frustum_points


class InFloat32(nn.Module):
    """Places points as upstream does, in the type of its matrices."""

    def __init__(self, frustum):
        super().__init__()
        self.frustum = frustum

    def get_ego_coor(self, pose, intrinsics):
        points = self.frustum.to(pose)
        points = torch.cat([points[..., :2] * points[..., 2:], points[..., 2:]], -1)
        turn = pose[:3, :3] @ intrinsics.inverse()
        return points @ turn.T + pose[:3, 3]


def test_points_at_the_borders_of_cells_have_the_cells_of_the_graph():
    """Cells of a tenth of a millimetre: in float32 some points are in the neighbouring cell."""
    axes = torch.arange(1.0, 12.0, 0.5), torch.linspace(0, 95, 16), torch.linspace(0, 175, 44)
    depth, row, column = torch.meshgrid(*axes, indexing='ij')
    upstream = InFloat32(torch.stack([column, row, depth], -1))
    low, step = torch.tensor([-12.8, -9.6, -10.0]), torch.tensor([1e-4, 1e-4, 20.0])
    intrinsics = torch.tensor([[130.7, 0, 88.3], [0, 130.7, 48.1], [0, 0, 1.0]])
    unit, none = torch.eye(3), torch.zeros(3)

    def cells(points):
        return cells_of(points, low, step, (256000, 192000, 1)).flatten()

    others = 0
    for yaw in (-2.3, 0.4, 1.7):
        pose, sine, cosine = torch.eye(4), math.sin(yaw), math.cos(yaw)
        pose[:3] = torch.tensor([[sine, 0, cosine, 0.61], [-cosine, 0, sine, 0.27], [0, -1, 0, 1.5]])
        expected = cells(frustum_points(pose, intrinsics, unit, none, upstream.frustum))
        others += int((cells(upstream.get_ego_coor(pose, intrinsics)) != expected).sum())
        with placed_in_float64(upstream):
            points = upstream.get_ego_coor(pose, intrinsics)
        assert points.dtype == torch.float32 and torch.equal(cells(points), expected)
    assert others >= 5
