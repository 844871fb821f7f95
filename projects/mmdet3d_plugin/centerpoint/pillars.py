"""Pillars of a detector as a module of flat tensors: mmdet3d's encoders of pillars and their scatter.

Source: mmdet3d 1.0.0rc6, models/voxel_encoders/{pillar,voxel}_encoder.py, middle_encoders/pillar_scatter.py.

Glossary: N pillars, M points of a pillar, D values per point, C channels, H, W bird's-eye view.
"""

import torch
from torch import nn

from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.runtime.centerpoint.pillars import INPUTS, PILLARS
from projects.mmdet3d_plugin.centerpoint import dynamic_pillars
from projects.mmdet3d_plugin.centerpoint.dynamic_pillars import DynamicPillars, PillarsOnMap
from projects.mmdet3d_plugin.common.parts import Parts, parts_of

EXAMPLE = 3
"""Pillars of the traced input."""
ENCODERS, SCATTER = ('PillarFeatureNet', 'HardVFE'), 'PointPillarsScatter'


class Pillars(PillarsOnMap):
    """Features of each pillar's points by one of `ENCODERS`, and the map that they are put on."""

    def forward(self, voxels: torch.Tensor, num_points: torch.Tensor, coors: torch.Tensor) -> torch.Tensor:
        """Return the bird's-eye view (1, C, H, W) float32.

        Voxels are (N, M, D) float32, metres first, zeros after a pillar's last point; num_points (N,) int32,
        1 or more; coors (N, 4) int32: sample 0, z, y, x of the pillar.
        """
        net, xyz = self.encoder, voxels[..., :3]
        counts = num_points.to(voxels.dtype)[:, None, None]
        centred = xyz - (coors[:, 1:].flip(1).to(voxels.dtype) * self.size + self.origin)[:, None]
        legacy = getattr(net, 'legacy', False)
        moved = legacy and net._with_voxel_center  # upstream writes the second over the first
        columns = [torch.cat([centred, voxels[..., 3:]], dim=-1) if moved else voxels]
        if net._with_cluster_center:
            columns.append(xyz - xyz.sum(1, keepdim=True) / counts)
        if net._with_voxel_center:
            columns.append(centred)
        if net._with_distance:
            columns.append(columns[0][..., :3].norm(dim=2, keepdim=True))
        real = torch.arange(voxels.shape[1], device=voxels.device)[:, None] < num_points[:, None, None]
        features = torch.cat(columns, dim=-1) * real.to(voxels.dtype)
        for layer in getattr(net, 'vfe_layers', ()):
            features = layer(features)
        for layer in getattr(net, 'pfn_layers', ()):
            features = layer(features, num_points)
        return self.on_map(features.flatten(1), coors)


def has_pillars(model: nn.Module) -> bool:
    """Return whether a detector's points become pillars."""
    return type(parts_of(model).middle_encoder).__name__ == SCATTER


def points_facts(model: nn.Module) -> dict[str, str]:
    """Return what the metadata tells about the points' side: of pillars that it has them."""
    return dict(points=PILLARS) if has_pillars(model) else {}


def pillars_graph(parts: Parts, family: str) -> Graph:
    """Return the graph from pillars to the bird's-eye view."""
    layer, encoder, scatter = parts.voxel_layer, parts.voxel_encoder, parts.middle_encoder
    width, device = point_width(encoder), next(encoder.parameters()).device
    generator = torch.Generator().manual_seed(0)
    if dynamic_pillars.has_dynamic_pillars(encoder):
        tensors, module = dynamic_pillars.tensors(width), DynamicPillars(encoder, scatter)
        example = dynamic_pillars.example(width, EXAMPLE, generator)
    else:
        tensors, module = hard_tensors(int(layer.max_num_points), width), Pillars(encoder, scatter)
        example = hard_example(int(layer.max_num_points), width, generator)
    shape = (1, int(scatter.in_channels), int(scatter.ny), int(scatter.nx))
    spec = GraphSpec(f'{family}/pillars', tensors, (TensorSpec('bev', 'float32', shape, "bird's-eye view"),))
    named = {tensor.name: value.to(device) for tensor, value in zip(tensors, example, strict=True)}
    return Graph('backbone', module.eval().to(device), spec, named)


def hard_tensors(most: int, width: int) -> tuple[TensorSpec, ...]:
    """Return the inputs of a graph of pillars with M points of D values."""
    return (
        TensorSpec(
            INPUTS[0], 'float32', ('N', most, width), 'points of each pillar, then zeros', single=True
        ),
        TensorSpec(INPUTS[1], 'int32', ('N',), 'how many points a pillar has'),
        TensorSpec(
            INPUTS[2], 'int32', ('N', 4), 'sample 0, z, y, x of each pillar, each pillar once', 'cell'
        ),
    )


def hard_example(most: int, width: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Return inputs to trace; see `hard_tensors`."""
    places = torch.arange(EXAMPLE, dtype=torch.int32)
    return (
        torch.rand(EXAMPLE, most, width, generator=generator),
        places % most + 1,
        torch.stack([0 * places, 0 * places, places, places], dim=1),
    )


def point_width(encoder: nn.Module) -> int:
    """Return D, values per point, of an encoder of pillars, which counts what it adds to them, too."""
    added = 3 * bool(encoder._with_cluster_center) + 3 * bool(encoder._with_voxel_center)
    return int(encoder.in_channels) - added - bool(encoder._with_distance)
