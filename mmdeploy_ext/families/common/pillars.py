"""Pillars of a detector as modules of flat tensors: mmdet3d's encoders and scatter.

Source: mmdet3d 1.0.0rc6, models/voxel_encoders/{pillar,voxel}_encoder.py, middle_encoders/pillar_scatter.py;
here an input holds each point's pillar (`DynamicPillarFeatureNet`), upstream looks it up in a map.
Glossary: P points in range, N pillars, M points of a pillar, D values per point, C channels, H, W bird's-eye
view.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from mmdeploy_ext.families.common.lidar_parts import Parts, parts_of
from mmdeploy_ext.runtime.lidar import DYNAMIC_INPUTS, INPUTS
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec
from mmdeploy_ext.upstream.operators.operator import LIBRARY_OPERATORS, LibraryOperator

EXAMPLE = 3
ENCODERS, SCATTER = ('PillarFeatureNet', 'HardVFE'), 'PointPillarsScatter'
DYNAMIC_ENCODER = 'DynamicPillarFeatureNet'
MEANS = ('HardSimpleVFE', 'DynamicSimpleVFE')
DYNAMIC_ENCODERS = (DYNAMIC_ENCODER, 'DynamicVFE')
OPSET = 18


class PillarsOnMap(nn.Module):
    """Computes features of pillars and puts them on a map."""

    def __init__(self, encoder: nn.Module, scatter: nn.Module) -> None:
        super().__init__()
        self.encoder, self.rows, self.columns = encoder, int(scatter.ny), int(scatter.nx)
        origin = encoder.x_offset, encoder.y_offset, encoder.z_offset
        self.register_buffer('size', torch.tensor([encoder.vx, encoder.vy, encoder.vz]), persistent=False)
        self.register_buffer('origin', torch.tensor(origin), persistent=False)

    def on_map(self, features: torch.Tensor, coors: torch.Tensor) -> torch.Tensor:
        places = (coors[:, 2] * self.columns + coors[:, 3]).long()
        canvas = features.new_zeros(self.rows * self.columns, features.shape[1])
        return canvas.index_put((places,), features).t().reshape(1, -1, self.rows, self.columns)


class Pillars(PillarsOnMap):
    """Features of each pillar's points by one of `ENCODERS`, and their map."""

    def forward(self, voxels: torch.Tensor, num_points: torch.Tensor, coors: torch.Tensor) -> torch.Tensor:
        """Return the bird's-eye view (1, C, H, W) float32.

        `voxels` (N, M, D) float32, metres first, zeros after the last point; `num_points` (N,) int32, 1 or
        more; `coors` (N, 4) int32: sample 0, z, y, x.
        """
        net, xyz = self.encoder, voxels[..., :3]
        counts = num_points.to(voxels.dtype)[:, None, None]
        centred = xyz - (coors[:, 1:].flip(1).to(voxels.dtype) * self.size + self.origin)[:, None]
        columns = [voxels]
        if getattr(net, 'legacy', False) and net._with_voxel_center:  # upstream overwrites its input
            columns = [torch.cat([centred, voxels[..., 3:]], dim=-1)]
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


def gathered(
    values: torch.Tensor,
    places: torch.Tensor,
    pillars: torch.Tensor,
    reduction: str,
    lower_bound: float = 0.0,
) -> torch.Tensor:
    """Return the sum or maximum (N, C) of each pillar's values.

    Args:
        values: (P, C), of `lower_bound` or more for 'amax'.
        places: (P,) int64, the pillar of each point.
        pillars: (N, ...); only the length is used.
        reduction: 'sum' or 'amax'.
        lower_bound: of the maxima; 0 for 'sum'.
    """
    empty = values.new_full((pillars.shape[0], values.shape[1]), lower_bound)
    return empty.scatter_reduce(0, places[:, None].expand(-1, values.shape[1]), values, reduction)


def encode_points(
    net: nn.Module,
    layers: Sequence[nn.Module],
    points: torch.Tensor,
    places: torch.Tensor,
    coors: torch.Tensor,
    cells: tuple[torch.Tensor, torch.Tensor],
    averaged: bool,
    fuse: Callable[[torch.Tensor], torch.Tensor] | None = None,
    fused_lower_bound: float = 0.0,
) -> torch.Tensor:
    """Return the features (N, C) of pillars or voxels that have all their points.

    Args:
        net: encoder of mmdet3d; its settings say which offsets of a point it takes.
        layers: its layers, each ends in a ReLU.
        points: (P, D) float32, metres first.
        places: (P,) int64, the pillar of each point.
        coors: (N, 4) int32: sample 0, z, y, x.
        cells: size of a pillar, and middle of the first one, (3,) metres each.
        averaged: whether a feature is the mean of the points, not the maximum.
        fuse: function of the last features (P, channels), or None.
        fused_lower_bound: lower bound of `fuse`.
    """
    xyz, ones = points[:, :3], torch.ones_like(points[:, :1])
    counts = gathered(ones, places, coors, 'sum')
    columns = [points]
    if net._with_cluster_center:
        columns.append(xyz - (gathered(xyz, places, coors, 'sum') / counts)[places])
    if net._with_voxel_center:
        size, origin = cells
        columns.append(xyz - (coors[:, 1:].flip(1).to(points.dtype)[places] * size + origin))
    if net._with_distance:
        columns.append(xyz.norm(dim=1, keepdim=True))
    features = torch.cat(columns, dim=1)
    for index, layer in enumerate(layers):
        is_last, lower_bound = index == len(layers) - 1, 0.0
        point_features = layer(features)
        if is_last and fuse is not None:
            point_features, lower_bound = fuse(point_features), fused_lower_bound
        if averaged:
            pillars = gathered(point_features, places, coors, 'sum') / counts
        else:
            pillars = gathered(point_features, places, coors, 'amax', lower_bound)
        if not is_last:
            features = torch.cat([point_features, pillars[places]], dim=1)
    return pillars


class DynamicPillars(PillarsOnMap):
    """Features of each pillar's points by a `DynamicPillarFeatureNet`, and their map."""

    def forward(self, points: torch.Tensor, rows: torch.Tensor, coors: torch.Tensor) -> torch.Tensor:
        """Return the bird's-eye view (1, C, H, W) float32.

        `points` (P, D) float32, metres first; `rows` (P,) int32 the pillar of each; `coors` (N, 4) int32:
        sample 0, z, y, x.
        """
        net, cells = self.encoder, (self.size, self.origin)
        averaged = bool(net.pfn_scatter.average_points)
        pillars = encode_points(net, net.pfn_layers, points, rows.long(), coors, cells, averaged)
        return self.on_map(pillars, coors)


def has_pillars(model: nn.Module) -> bool:
    return type(parts_of(model).middle_encoder).__name__ == SCATTER


def pillars_graph(parts: Parts, family: str) -> Graph:
    encoder, scatter = parts.voxel_encoder, parts.middle_encoder
    width, device = point_width(encoder), next(encoder.parameters()).device
    if has_dynamic_pillars(encoder):
        inputs, module = dynamic_inputs(width), DynamicPillars(encoder, scatter)
    else:
        inputs, module = hard_inputs(int(parts.voxel_layer.max_num_points), width), Pillars(encoder, scatter)
    shape = (1, int(scatter.in_channels), int(scatter.ny), int(scatter.nx))
    bev = TensorSpec('bev', 'float32', shape, "bird's-eye view")
    spec = GraphSpec(f'{family}/pillars', tuple(tensor for tensor, _ in inputs), (bev,))
    example = {tensor.name: value.to(device) for tensor, value in inputs}
    return Graph('backbone', module.eval().to(device), spec, example)


def _points(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


PLACES = torch.arange(EXAMPLE, dtype=torch.int32)
CELLS = torch.stack([0 * PLACES, 0 * PLACES, PLACES, PLACES], dim=1)
"""Numbers of the traced pillars (N,), and their cells (N, 4) on the diagonal."""


def hard_inputs(max_points: int, width: int) -> list[tuple[TensorSpec, torch.Tensor]]:
    """Return each input with its traced tensor; float32 also in a float16 graph."""
    points, cells = (
        ('points of each pillar, padded with zeros'),
        'sample (0), z, y, x of each pillar; no duplicates',
    )
    tensors = (
        TensorSpec(INPUTS[0], 'float32', ('N', max_points, width), points, single=True),
        TensorSpec(INPUTS[1], 'int32', ('N',), 'number of points in each pillar'),
        TensorSpec(INPUTS[2], 'int32', ('N', 4), cells, 'cell'),
    )
    example = _points(EXAMPLE, max_points, width), PLACES % max_points + 1, CELLS
    return list(zip(tensors, example, strict=True))


def dynamic_inputs(width: int) -> list[tuple[TensorSpec, torch.Tensor]]:
    """Return each input with its traced tensor, two points per pillar; float32 also in a float16 graph."""
    rows, cells = (
        'row of coors that each point belongs to',
        ('sample (0), z, y, x of each pillar; no duplicates'),
    )
    tensors = (
        TensorSpec(DYNAMIC_INPUTS[0], 'float32', ('P', width), 'points in range', single=True),
        TensorSpec(DYNAMIC_INPUTS[1], 'int32', ('P',), rows),
        TensorSpec(DYNAMIC_INPUTS[2], 'int32', ('N', 4), cells, 'cell'),
    )
    example = _points(2 * EXAMPLE, width), PLACES.repeat(2), CELLS
    return list(zip(tensors, example, strict=True))


def takes_means(encoder: nn.Module) -> bool:
    return type(encoder).__name__ in MEANS


def point_width(encoder: nn.Module) -> int:
    """Return D of an encoder, without the channels that it adds."""
    width = int(encoder.in_channels)
    if encoder._with_cluster_center:
        width -= 3
    if encoder._with_voxel_center:
        width -= 3
    if encoder._with_distance:
        width -= 1
    return width


def width_of_points(parts: Parts) -> int:
    if takes_means(parts.voxel_encoder):
        return int(parts.middle_encoder.in_channels)
    return point_width(parts.voxel_encoder)


def has_dynamic_pillars(module: nn.Module) -> bool:
    classes = (base for part in module.modules() for base in type(part).__mro__)
    return any(base.__name__ in DYNAMIC_ENCODERS for base in classes)


LIBRARY_OPERATORS.append(
    LibraryOperator(('dynamic pillars', 'ScatterElements with max'), OPSET, DYNAMIC_ENCODERS)
)
