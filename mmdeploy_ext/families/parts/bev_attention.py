"""The attentions of BEVFormer, on live modules: to the last bird's-eye view, and to the cameras' pictures.

Each takes a module of the user's or of ours by the names of its parameters: `sampling_offsets`,
`attention_weights`, `value_proj` and `output_proj`, linear layers. They sample by GridSample, which is exact
here: mmcv's kernels take the same four corners with the same weights.

Glossary: N cameras, H, W rows and columns of a view, Q cells of it or queries, C channels, M heads,
D = C / M, L levels of a camera's feature maps, h, w their sizes, P points per level, Z points of a pillar.

Source of the algorithm: fundamentalvision/BEVFormer 66b65f3, `modules/temporal_self_attention.py`,
`modules/spatial_cross_attention.py`, `modules/decoder.py`.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdeploy_ext.exporting.ops.attention import attend_maps, attend_tokens


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


def attend_views(module: nn.Module, query: Tensor, position: Tensor, views: SeenViews) -> Tensor:
    """Return what `TemporalSelfAttention` computes before its shortcut (1, Q, C).

    Args:
        module: the attention.
        query: (1, Q, C).
        position: embedding of the cells, of the same shape.
        views: the last view and the present one, and where each cell looks in both; without a last one the
            cells are the query twice.
    """
    heads, points = module.num_heads, module.num_points
    both = torch.cat([views.cells[:1], query + position], -1)
    per_view = (heads, 2, points)
    offsets = module.sampling_offsets(both).unflatten(-1, (*per_view, 2))[0]  # (Q, M, 2, P, 2)
    weights = module.attention_weights(both).unflatten(-1, per_view).softmax(-1)[0]  # (Q, M, 2, P)
    height, width = views.size
    shares = offsets / offsets.new_tensor([width, height])
    locations = views.places[:, :, None, None] + shares.permute(2, 0, 1, 3, 4)  # (2, Q, M, P, 2)
    values = module.value_proj(views.cells).transpose(1, 2)  # (2, C, Q)
    maps = values.reshape(2 * heads, -1, height, width)
    mixed = attend_maps(
        [maps], 2 * locations[:, :, :, None] - 1, weights.permute(2, 1, 0, 3).flatten(0, 1)[:, None]
    )
    mixed = mixed.reshape(2, values.shape[1], -1).mean(0)  # (C, Q)
    return module.output_proj(mixed.t()[None])


def attend_cameras(
    module: nn.Module, query: Tensor, maps: Sequence[Tensor], places: Tensor, is_seen: Tensor
) -> Tensor:
    """Return what `SpatialCrossAttention` computes before its shortcut (1, Q, C).

    Every cell attends to every camera, and the cameras that do not see it are left out of the mean: the same
    function as upstream's, which collects the cells of each camera first.

    Args:
        module: the attention; its `deformable_attention` samples.
        query: (1, Q, C).
        maps: of each level (N, C, h, w), embeddings of camera and level added.
        places: (N, Q, Z, 2), where each camera sees each point of a pillar, x and y in shares of the picture,
            as `bev_grid.project_pillars` returns them.
        is_seen: (N, Q, Z), which of the points are in the pictures.
    """
    sampler = module.deformable_attention
    heads, levels, points = sampler.num_heads, sampler.num_levels, sampler.num_points
    pillar = places.shape[2]
    offsets = sampler.sampling_offsets(query)[0]  # point p of a level belongs to point p mod Z of the pillar
    offsets = offsets.unflatten(-1, (heads, levels, points // pillar, pillar, 2))
    weights = sampler.attention_weights(query)[0].unflatten(-1, (heads, levels * points)).softmax(-1)
    weights = weights.unflatten(-1, (levels, points)).permute(2, 1, 0, 3)  # (L, M, Q, P)
    values = []
    for level in maps:
        projected = sampler.value_proj(level.flatten(2).transpose(1, 2)).transpose(1, 2)
        values.append(projected.reshape(level.shape[0], heads, -1, *level.shape[2:]))  # (N, M, D, h, w)
    hits = is_seen.any(-1).to(query.dtype)  # (N, Q)
    total = 0.0
    for camera in range(len(hits)):  # one at a time: all samples of all cameras at once are gigabytes
        sampled = 0.0
        for level, value in enumerate(values):
            size = offsets.new_tensor([value.shape[4], value.shape[3]])
            shares = offsets[:, :, level] / size  # (Q, M, P / Z, Z, 2)
            locations = (places[camera][:, None, None] + shares).flatten(2, 3)  # (Q, M, P, 2)
            sampled = sampled + attend_maps(
                [value[camera]], 2 * locations[None, :, :, None] - 1, weights[level][:, None]
            )  # (M, D, Q)
        total = total + sampled.flatten(0, 1) * hits[camera]
    mixed = total / hits.sum(0).clamp(min=1)
    return module.output_proj(mixed.t()[None])


def attend_view(module: nn.Module, query: Tensor, view: SeenViews) -> Tensor:
    """Return what the decoder's deformable attention computes before its shortcut (1, Q, C).

    Args:
        module: the attention.
        query: (1, Q, C), positions added.
        view: one view, and where each query looks in it.
    """
    keep = view.cells.new_ones(1, view.cells.shape[1], 1)
    return attend_tokens(module, query, view.cells, keep, [view.size], view.places[:, :, None])
