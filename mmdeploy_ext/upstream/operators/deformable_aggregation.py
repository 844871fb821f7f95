"""Deformable aggregation of Sparse4D: key points gather features of all cameras and levels.

Glossary: B batch, N cameras, L levels, S cells of all maps, C channels, A instances, P points, G groups of
channels, m pairs of an instance and a camera that sees it.

Source of the rule: HorizonRobotics/Sparse4D c41df4b, ops/src/deformable_aggregation_cuda.cu. Source of the
plugin's names: ThomasVonWu/SparseEnd2End 15790b6, deploy/dfa_plugin/deformableAttentionAggrPlugin.cpp.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdeploy_ext.upstream.compat import plain_kernels
from mmdeploy_ext.upstream.operators.operator import Operator, Plugin, register

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Steps in y and x from a point's upper left cell to its four neighbours."""


def _in_pictures(locations: Tensor) -> Tensor:
    return ((locations > 0) & (locations < 1)).all(-1)


def _eager(
    features: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    grid_sample: bool,
) -> Tensor:
    return plain_kernels.deformable_aggregation(
        features, spatial_shapes, level_start_index, locations, weights
    )


def _traceable(*arguments: Any) -> Tensor:
    *inputs, grid_sample = arguments
    return _sampled(*inputs) if grid_sample else _gathered(*inputs)


def _gathered(
    features: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    batch, count, channels = features.shape
    instances, points, cameras = locations.shape[1:4]
    levels, groups = weights.shape[4:]
    is_seen = _in_pictures(locations).transpose(2, 3).reshape(-1, points)
    pair = is_seen.any(1).nonzero()[:, 0]  # (m,)
    is_seen = is_seen[pair]
    place = locations.transpose(2, 3).reshape(-1, points, 2)[pair]
    place = torch.where(is_seen[..., None], place, torch.zeros_like(place))  # others may be infinitely far
    camera = pair % cameras
    instance = torch.div(pair, cameras, rounding_mode='floor')  # of all samples of the batch
    group = torch.arange(groups, device=features.device)
    share = weights.permute(0, 1, 5, 3, 4, 2).reshape(-1, levels * points)  # by instance, group and camera
    share = share[(instance[:, None] * groups + group) * cameras + camera[:, None]]
    share = share.unflatten(-1, (levels, points)) * is_seen[:, None, None].to(share.dtype)  # (m, G, L, P)
    starts = level_start_index.to(torch.int64)[camera]  # (m, L)
    if batch > 1:
        starts = starts + torch.div(instance, instances, rounding_mode='floor')[:, None] * count
    index, part = _corners(place[:, None], spatial_shapes.to(torch.int64)[camera][:, :, None])
    index = (starts[..., None] + index)[:, None] * groups + group[:, None, None]  # (m, G, L, 4 P)
    part = part[:, None] * share.repeat(1, 1, 1, len(CORNERS))
    cells = features.reshape(-1, channels // groups)
    mixed = 0.0
    for level in range(levels):
        mixed = mixed + part[:, :, level, None] @ cells[index[:, :, level]]  # (m, G, 1, C / G)
    mixed = mixed.reshape(-1, channels)
    empty = features.new_zeros(batch * instances, channels)
    summed = empty.scatter_add(0, instance[:, None].expand(-1, channels), mixed)
    return summed.reshape(batch, instances, channels)


def _corners(place: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    height, width = sizes.unbind(-1)
    y = place[..., 1] * height.to(place.dtype) - 0.5
    x = place[..., 0] * width.to(place.dtype) - 0.5
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    cells, parts = [], []
    for step_y, step_x in CORNERS:
        row, column = top.to(torch.int64) + step_y, left.to(torch.int64) + step_x
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        part = (down if step_y else 1 - down) * (right if step_x else 1 - right)
        cells.append((row * width + column) * inside.to(torch.int64))
        parts.append(part * inside.to(part.dtype))
    return torch.cat(cells, -1), torch.cat(parts, -1)


def _sampled(
    features: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    is_seen = _in_pictures(locations)
    grid = torch.where(is_seen[..., None], 2 * locations - 1, torch.zeros_like(locations))
    weights = weights * is_seen[..., None, None].to(weights.dtype)
    sizes, starts = spatial_shapes.tolist(), level_start_index.tolist()
    groups = weights.shape[-1]
    mixed = 0.0
    for camera, shapes in enumerate(sizes):
        for level, (height, width) in enumerate(shapes):
            begin = starts[camera][level]
            cells = features[:, begin : begin + height * width].transpose(1, 2)
            cells = cells.reshape(cells.shape[0], -1, height, width)
            sampled = F.grid_sample(cells, grid[:, :, :, camera], align_corners=False)  # (B, C, A, P)
            share = weights[:, :, :, camera, level].permute(0, 3, 1, 2)[:, :, None]  # (B, G, 1, A, P)
            mixed = mixed + (sampled.unflatten(1, (groups, -1)) * share).sum(-1).flatten(1, 2)
    return mixed.transpose(1, 2)


DEFORMABLE_AGGREGATION = register(
    Operator(
        'DeformableAggregation',
        _eager,
        inputs=dict(
            features='B S C',
            spatial_shapes='N L 2',
            level_start_index='N L',
            locations='B A P N 2',
            weights='B A P N L G',
        ),
        outputs=('aggregated',),
        example=lambda: (
            torch.rand(1, 60, 8),
            torch.tensor([[[4, 6], [2, 3]]] * 2, dtype=torch.int32),
            torch.tensor([[0, 24], [30, 54]], dtype=torch.int32),
            1.4 * torch.rand(1, 5, 3, 2, 2) - 0.2,
            torch.rand(1, 5, 3, 2, 2, 4),
        ),
        traceable=_traceable,
        shapes=lambda features, sizes, starts, locations, *_: features.new_empty(
            locations.shape[0], locations.shape[1], features.shape[2]
        ),
        plugin=Plugin('DeformableAttentionAggrPlugin', domain='custom'),
    )
)
"""The operator of `aggregate`, with its arguments and result."""


def aggregate(
    features: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    grid_sample: bool = False,
) -> Tensor:
    """Return the aggregated features (B, A, C), the weighted sums over points, cameras and levels.

    Args:
        features: (B, S, C), camera by camera, level by level, row by row.
        spatial_shapes: (N, L, 2) int32, height and width of each map.
        level_start_index: (N, L) int32, start of each map in S.
        locations: (B, A, P, N, 2), x and y in shares of the picture, any finite value.
        weights: (B, A, P, N, L, G); channel c has the weights of group c // (C / G).
        grid_sample: export by GridSample with constant sizes and starts, else by gathers.
    """
    return DEFORMABLE_AGGREGATION(
        features, spatial_shapes, level_start_index, locations, weights, grid_sample
    )
