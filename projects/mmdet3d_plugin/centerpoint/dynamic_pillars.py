"""Pillars with all their points, as a module of flat tensors: mmdet3d's dynamic encoder of pillars.

Source: mmdet3d 1.0.0rc6, models/voxel_encoders/pillar_encoder.py `DynamicPillarFeatureNet`. Differs in: each
point says which pillar it is in; upstream looks that up on a map of all pillars, whose size it rounds down.

Glossary: P points in range, D values per point, N pillars, C channels, H, W bird's-eye view.
"""

from __future__ import annotations

import torch
from torch import nn

from mmdeploy_ext.contract.spec import TensorSpec
from mmdeploy_ext.exporting.exporter import LIBRARY_OPERATORS, LibraryOperator
from mmdeploy_ext.runtime.centerpoint.pillars import DYNAMIC_INPUTS

ENCODER = 'DynamicPillarFeatureNet'
OPSET = 18
"""The first whose ScatterElements takes the largest value."""


def put_on_map(features: torch.Tensor, coors: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return the map (1, C, rows, columns) of features (N, C) at the last two values of coors (N, 4)."""
    places = (coors[:, 2] * columns + coors[:, 3]).long()
    canvas = features.new_zeros(rows * columns, features.shape[1]).index_put((places,), features)
    return canvas.t().reshape(1, -1, rows, columns)


def gathered(values: torch.Tensor, places: torch.Tensor, pillars: torch.Tensor, way: str) -> torch.Tensor:
    """Return what the points of each pillar come to (N, C).

    Args:
        values: (P, C); of 0 or more where the way is 'amax'.
        places: (P,) int64, the pillar of each point.
        pillars: (N, any), whose length alone counts.
        way: 'sum' or 'amax'.
    """
    empty = values.new_zeros(pillars.shape[0], values.shape[1])
    return empty.scatter_reduce(0, places[:, None].expand(-1, values.shape[1]), values, way)


class DynamicPillars(nn.Module):
    """Features of each pillar's points, and the map that they are put on."""

    def __init__(self, encoder: nn.Module, scatter: nn.Module) -> None:
        """Keep upstream's parts.

        Args:
            encoder: a `DynamicPillarFeatureNet`.
            scatter: a `PointPillarsScatter`.
        """
        super().__init__()
        self.encoder, self.rows, self.columns = encoder, int(scatter.ny), int(scatter.nx)
        origin = encoder.x_offset, encoder.y_offset, encoder.z_offset
        self.register_buffer('size', torch.tensor([encoder.vx, encoder.vy, encoder.vz]), persistent=False)
        self.register_buffer('origin', torch.tensor(origin), persistent=False)

    def forward(self, points: torch.Tensor, rows: torch.Tensor, coors: torch.Tensor) -> torch.Tensor:
        """Return the bird's-eye view (1, C, H, W) float32.

        Args:
            points: (P, D) float32, metres first.
            rows: (P,) int32, the pillar of each point.
            coors: (N, 4) int32: sample 0, z, y, x of the pillar.
        """
        net, xyz, places = self.encoder, points[:, :3], rows.long()
        ones = torch.ones_like(points[:, :1])
        counts = gathered(ones, places, coors, 'sum')
        columns = [points]
        if net._with_cluster_center:
            columns.append(xyz - (gathered(xyz, places, coors, 'sum') / counts)[places])
        if net._with_voxel_center:
            cells = coors[:, 1:].flip(1).to(points.dtype)[places]
            columns.append(xyz - (cells * self.size + self.origin))
        if net._with_distance:
            columns.append(xyz.norm(dim=1, keepdim=True))
        features = torch.cat(columns, dim=1)
        for index, layer in enumerate(net.pfn_layers):
            found = layer(features)  # ends in a ReLU
            if net.pfn_scatter.average_points:
                pillars = gathered(found, places, coors, 'sum') / counts
            else:
                pillars = gathered(found, places, coors, 'amax')
            if index < len(net.pfn_layers) - 1:
                features = torch.cat([found, pillars[places]], dim=1)
        return put_on_map(pillars, coors, self.rows, self.columns)


def tensors(width: int) -> tuple[TensorSpec, ...]:
    """Return the inputs of the graph.

    Args:
        width: D.
    """
    return (
        TensorSpec(DYNAMIC_INPUTS[0], 'float32', ('P', width), 'points in range', single=True),
        TensorSpec(DYNAMIC_INPUTS[1], 'int32', ('P',), 'the pillar of each point, as a row of coors'),
        TensorSpec(
            DYNAMIC_INPUTS[2], 'int32', ('N', 4), 'sample 0, z, y, x of each pillar, each once', 'cell'
        ),
    )


def example(width: int, pillars: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Return inputs to trace: two points of each of some pillars."""
    places = torch.arange(pillars, dtype=torch.int32)
    points = torch.rand(2 * pillars, width, generator=generator)
    return points, places.repeat(2), torch.stack([0 * places, 0 * places, places, places], dim=1)


def has_dynamic_pillars(module: nn.Module) -> bool:
    """Return whether a module has an encoder of dynamic pillars."""
    return any(type(part).__name__ == ENCODER for part in module.modules())


LIBRARY_OPERATORS.append(
    LibraryOperator(('dynamic pillars', 'ScatterElements with max'), OPSET, has_dynamic_pillars)
)
