"""Detectors that lift pictures, in PyTorch: what decides the cell of a point."""

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.families.common.lift_reference import placed_in_float64
from mmdeploy_ext.models.lift_splat.view_transformer import cells_of, frustum_points
from toy_frames import FLASHOCC


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


def test_points_at_the_borders_of_cells_have_the_cells_of_the_graph(tmp_path):
    """Cells of a tenth of a millimetre: in float32 some points are in the neighbouring cell."""
    view, rng = FLASHOCC.load(tmp_path).model.img_view_transformer, np.random.default_rng(0)
    step, unit, none = torch.tensor([1e-4, 1e-4, 6.4]), torch.eye(3), torch.zeros(3)

    def cells(points):
        return cells_of(points, view.grid_lower_bound, step, (256000, 192000, 1)).flatten()

    upstream, others = InFloat32(view.frustum), 0
    for yaw in rng.uniform(-3, 3, 20):
        pose = torch.eye(4)
        sine, cosine = np.sin(yaw), np.cos(yaw)
        pose[:3, :3] = torch.tensor([[sine, 0, cosine], [-cosine, 0, sine], [0, -1, 0]])
        pose[:3, 3] = torch.from_numpy(rng.uniform(0, 1, 3))
        intrinsics = torch.tensor([[130.7, 0, 88.3], [0, 130.7, 48.1], [0, 0, 1.0]])
        expected = cells(frustum_points(pose, intrinsics, unit, none, view.frustum))
        others += int((cells(upstream.get_ego_coor(pose, intrinsics)) != expected).sum())
        with placed_in_float64(upstream):
            points = upstream.get_ego_coor(pose, intrinsics)
        assert points.dtype == torch.float32 and torch.equal(cells(points), expected)
    assert others >= 5
