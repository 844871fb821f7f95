"""Pillars with all their points, as a module of flat tensors: mmdet3d's dynamic encoder of pillars.

Source: mmdet3d 1.0.0rc6, models/voxel_encoders/pillar_encoder.py `DynamicPillarFeatureNet`. Differs in: each
point says which pillar it is in; upstream looks that up on a map of all pillars, whose size it rounds down.

Glossary: P points in range, D values per point, N pillars, C channels, H, W bird's-eye view.
"""

import contextlib

import torch
from torch import nn

from mmdeploy_ext.contract.spec import TensorSpec
from mmdeploy_ext.exporting.exporter import LIBRARY_OPERATORS, LibraryOperator
from mmdeploy_ext.runtime.centerpoint.pillars import DYNAMIC_INPUTS

ENCODER = 'DynamicPillarFeatureNet'
OPSET = 18
"""The first whose ScatterElements takes the largest value."""


class PillarsOnMap(nn.Module):
    """The parts of a detector that make features of pillars and put them on a map."""

    def __init__(self, encoder: nn.Module, scatter: nn.Module) -> None:
        super().__init__()
        self.encoder, self.rows, self.columns = encoder, int(scatter.ny), int(scatter.nx)
        origin = encoder.x_offset, encoder.y_offset, encoder.z_offset
        self.register_buffer('size', torch.tensor([encoder.vx, encoder.vy, encoder.vz]), persistent=False)
        self.register_buffer('origin', torch.tensor(origin), persistent=False)

    def on_map(self, features: torch.Tensor, coors: torch.Tensor) -> torch.Tensor:
        """Return the map (1, C, H, W) of features (N, C) at the last two values of coors (N, 4)."""
        places = (coors[:, 2] * self.columns + coors[:, 3]).long()
        canvas = features.new_zeros(self.rows * self.columns, features.shape[1])
        return canvas.index_put((places,), features).t().reshape(1, -1, self.rows, self.columns)


def gathered(values: torch.Tensor, places: torch.Tensor, pillars: torch.Tensor, way: str) -> torch.Tensor:
    """Return what the points of each pillar come to (N, C), by way of 'sum' or 'amax'.

    Values are (P, C), of 0 or more for 'amax'; places (P,) int64 are the pillar of each point; of pillars (N,
    any) the length alone counts.
    """
    empty = values.new_zeros(pillars.shape[0], values.shape[1])
    return empty.scatter_reduce(0, places[:, None].expand(-1, values.shape[1]), values, way)


class DynamicPillars(PillarsOnMap):
    """Features of each pillar's points by a `DynamicPillarFeatureNet`, and the map that they are put on."""

    def forward(self, points: torch.Tensor, rows: torch.Tensor, coors: torch.Tensor) -> torch.Tensor:
        """Return the bird's-eye view (1, C, H, W) float32.

        Points are (P, D) float32, metres first; rows (P,) int32 the pillar of each; coors (N, 4) int32:
        sample 0, z, y, x of the pillar.
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
            mean = net.pfn_scatter.average_points
            pillars = gathered(found, places, coors, 'sum' if mean else 'amax')
            pillars = pillars / counts if mean else pillars
            if index < len(net.pfn_layers) - 1:
                features = torch.cat([found, pillars[places]], dim=1)
        return self.on_map(pillars, coors)


def tensors(width: int) -> tuple[TensorSpec, ...]:
    """Return the inputs of the graph for points of D values."""
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
    LibraryOperator(
        ('dynamic pillars', 'ScatterElements with max'), contextlib.nullcontext, OPSET, has_dynamic_pillars
    )
)
