"""The attentions of BEVFormer, on live modules: to the last bird's-eye view, and to pictures.

Source: fundamentalvision/BEVFormer 66b65f3,
`modules/{temporal_self_attention,spatial_cross_attention,decoder}.py`.
Glossary: N cameras, H, W rows and columns of a view, Q cells of it or queries, C channels, M heads, D = C /
M, L levels of a camera's feature maps, h, w their sizes, P points per level, Z points of a pillar.
"""

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OUTSIDE = -3.0
"""A place of GridSample outside of the map: the sample is 0."""


@dataclasses.dataclass(frozen=True)
class SeenViews:
    """Bird's-eye views, and where queries look in each of them.

    Attributes:
        cells: (V, H W, C), V views, each row by row.
        places: (V, Q, 2), x and y in shares of the sides of a view.
        size: H and W.
    """

    cells: Tensor
    places: Tensor
    size: tuple[int, int]


def sample_views(module: nn.Module, query: Tensor, views: SeenViews) -> Tensor:
    """Return weighted samples of each view, summed over the points of a query (1, Q, C): (V, C, Q)."""
    heads, points, count = module.num_heads, module.num_points, len(views.cells)
    height, width = views.size
    offsets = scaled_offsets(module.sampling_offsets(query)[0], [views.size], heads, count * points)
    offsets = offsets.unflatten(-1, (heads, count, -1)).permute(2, 1, 0, 3)  # (V, M, Q, 2 P)
    centres = (2 * views.places - 1).repeat(1, 1, points)[:, None]  # (V, 1, Q, 2 P)
    grid = (centres + offsets).flatten(0, 1).unflatten(-1, (points, 2))
    weights = module.attention_weights(query)[0].unflatten(-1, (heads, count, points)).softmax(-1)
    weights = weights.permute(2, 1, 0, 3).flatten(0, 1)[:, None]  # (V M, 1, Q, P)
    values = module.value_proj(views.cells).transpose(1, 2).reshape(count * heads, -1, height, width)
    mixed = (F.grid_sample(values, grid, align_corners=False) * weights).sum(-1)  # 0 outside
    return mixed.reshape(count, -1, mixed.shape[-1])


def scaled_offsets(offsets: Tensor, sizes: Sequence[tuple[int, int]], heads: int, points: int) -> Tensor:
    """Return offsets (Q, M * L * P * 2), in cells, as steps of GridSample; x before y."""
    steps = [step for height, width in sizes for step in (2 / width, 2 / height) * points]
    return offsets * offsets.new_tensor(steps * heads)


def attend_views(module: nn.Module, query: Tensor, position: Tensor, views: SeenViews) -> Tensor:
    """Return (1, Q, C) of `TemporalSelfAttention` before its shortcut.

    `query` and `position` are (1, Q, C). `views` are the last view, turned, and the first queries of the
    encoder; without a last view `query` twice.
    """
    both = torch.cat([views.cells[:1], query + position], -1)
    return module.output_proj(sample_views(module, both, views).mean(0).t()[None])


def attend_cameras(
    module: nn.Module, query: Tensor, maps: Sequence[Tensor], places: Tensor, is_seen: Tensor
) -> Tensor:
    """Return (1, Q, C) of `SpatialCrossAttention` before its shortcut.

    Every cell attends to every camera; cameras that do not see it give 0, which equals upstream's selection.

    Args:
        module: the attention; its `deformable_attention` samples.
        query: (1, Q, C), positions not added.
        maps: of each level (N, C, h, w), embeddings of camera and level added.
        places: (N, Q, Z, 2), x and y in shares of the picture (`grid.project_pillars`).
        is_seen: (N, Q, Z), whether a point is in the picture.
    """
    sampler = module.deformable_attention
    heads, levels, points = sampler.num_heads, sampler.num_levels, sampler.num_points
    sizes = [tuple(level.shape[2:]) for level in maps]
    offsets = scaled_offsets(sampler.sampling_offsets(query)[0], sizes, heads, points)
    offsets = offsets.unflatten(-1, (heads, levels, 2 * points)).permute(2, 1, 0, 3)  # (L, M, Q, 2 P)
    weights = sampler.attention_weights(query)[0].unflatten(-1, (heads, levels * points)).softmax(-1)
    weights = weights.unflatten(-1, (levels, points)).permute(2, 1, 0, 3)[:, :, None]  # (L, M, 1, Q, P)
    hits = is_seen.any(-1)  # (N, Q)
    # point p of a level belongs to point p mod Z of the pillar
    centres = (2 * places - 1).flatten(2).repeat(1, 1, points // places.shape[2])  # (N, Q, 2 P)
    total = 0.0
    for level, features in enumerate(maps):
        values = sampler.value_proj(features.flatten(2).transpose(1, 2)).transpose(1, 2)
        values = values.reshape(len(features), heads, -1, *sizes[level])  # (N, M, D, h, w)
        summed = 0.0
        for camera in range(len(features)):  # one at a time: all samples of all cameras at once are gigabytes
            grid = centres[camera] + offsets[level]
            grid = torch.where(hits[camera, :, None], grid, grid.new_tensor(OUTSIDE))
            grid = grid.unflatten(-1, (points, 2))
            summed = summed + F.grid_sample(values[camera], grid, align_corners=False)
        total = total + (summed * weights[level]).sum(-1)  # (M, D, Q)
    mixed = total.flatten(0, 1) / hits.to(query.dtype).sum(0).clamp(min=1)
    return module.output_proj(mixed.t()[None])


def attend_view(module: nn.Module, query: Tensor, view: SeenViews) -> Tensor:
    """Return (1, Q, C) of the decoder's deformable attention before its shortcut; positions are added."""
    return module.output_proj(sample_views(module, query, view).transpose(1, 2))
