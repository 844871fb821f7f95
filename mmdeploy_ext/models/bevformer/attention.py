"""The attentions of BEVFormer as upstream runs them: by mmcv's sampling, and only where a camera sees a cell.

A graph computes the same by other code, `families/parts/bev_attention.py`: so a proof compares two forms.

Glossary: N cameras, Q cells of the bird's-eye view, n of them, C channels, M heads, D = C / M, L levels, h, w
their sizes, B views or pictures, S tokens of each, Z points of a pillar.

Source of names and shapes: fundamentalvision/BEVFormer 66b65f3, `modules/{temporal_self_attention,
spatial_cross_attention,decoder}.py`. Training needs more than this (dropout, initial values): not here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.cnn.bricks.transformer import build_attention
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttention,
    multi_scale_deformable_attn_pytorch,
)
from mmcv.runner.base_module import BaseModule
from torch import Tensor, nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.catalogue import registered_if_named


class DeformableSampler(BaseModule):
    """The linear layers of a deformable attention.

    Args:
        embed_dims: C, channels of queries and values; a ConfigError unless it is a multiple of M.
        num_heads: M.
        num_levels: feature maps that are sampled.
        num_points: samples of a query per head and map.
        queues: how many times as many samples and weights there are, and channels of the queries.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, num_levels: int, num_points: int, queues: int = 1
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ConfigError(
                f'{type(self).__name__}: embed_dims is {embed_dims}, expected a multiple of num_heads = '
                f'{num_heads}'
            )
        self.embed_dims, self.num_heads = embed_dims, num_heads
        self.num_levels, self.num_points = num_levels, num_points
        samples = queues * num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(queues * embed_dims, 2 * samples)
        self.attention_weights = nn.Linear(queues * embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)

    def values_of(self, tokens: Tensor) -> Tensor:
        """Return the projected tokens (B, S, C) by head (B, S, M, D)."""
        return self.value_proj(tokens).unflatten(-1, (self.num_heads, -1))


@registered_if_named(ATTENTION)
class TemporalSelfAttention(DeformableSampler):
    """Cells of the bird's-eye view look into the last view and into the first queries of the present one.

    `num_levels` has to be 1 and `num_bev_queue` 2: ConfigError otherwise, also for upstream's default of 4
    levels. `embed_dims`, `num_heads` and `num_points` are those of `DeformableSampler`. `im2col_step`,
    `dropout`, `batch_first`, `norm_cfg` and `init_cfg` are not used at test time.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        num_bev_queue: int = 2,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = True,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if (num_levels, num_bev_queue) != (1, 2):
            raise ConfigError(
                f'TemporalSelfAttention: num_levels={num_levels}, num_bev_queue={num_bev_queue}; expected 1 '
                "and 2, a bird's-eye view of one level and the one before it"
            )
        super().__init__(embed_dims, num_heads, num_levels, num_points, num_bev_queue)
        self.output_proj = nn.Linear(embed_dims, embed_dims)

    def forward(
        self, query: Tensor, position: Tensor, views: Tensor, places: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Return what is added to the query (1, Q, C).

        Args:
            query: (1, Q, C).
            position: embedding of the cells, of the same shape.
            views: (2, Q, C), the last view and the queries before the first layer of the encoder, in each of
                its layers; without a last view `query` twice.
            places: (2, Q, 2), where each cell looks in each view, x and y in shares of its sides, below 0
                or above 1 outside of it.
            size: rows and columns of the view.
        """
        height, width = size
        both = torch.cat([views[:1], query + position], -1)
        split = (self.num_heads, 2, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(both).view(1, -1, *split, 2)
        weights = self.attention_weights(both).view(1, -1, *split[:2], self.num_points).softmax(-1)
        shares = offsets[0].permute(2, 0, 1, 3, 4, 5) / offsets.new_tensor([width, height])
        locations = places.view(2, -1, 1, 1, 1, 2) + shares
        attended = multi_scale_deformable_attn_pytorch(
            self.values_of(views),
            torch.tensor([size], device=query.device),
            locations,
            weights[0].permute(2, 0, 1, 3)[:, :, :, None].contiguous(),
        )
        return self.output_proj(attended.mean(0, keepdim=True))


@registered_if_named(ATTENTION)
class MSDeformableAttention3D(DeformableSampler):
    """Samples around the points of a pillar in the feature maps of the cameras; it has no output layer.

    `embed_dims`, `num_heads`, `num_levels` and `num_points` are those of `DeformableSampler`, the last a
    multiple of Z; the others are not used at test time.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = True,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(embed_dims, num_heads, num_levels, num_points)

    def forward(self, query: Tensor, tokens: Tensor, places: Tensor, sizes: Tensor) -> Tensor:
        """Return the mixed values (1, n, C) of the cells that one camera sees.

        Args:
            query: (1, n, C).
            tokens: (1, S, C), the levels one after the other, each row by row.
            places: (n, Z, 2) of the pillars' points, x and y in shares of the picture.
            sizes: (L, 2) h, w.
        """
        split = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(1, -1, *split, 2) / sizes.flip(1)[:, None]
        weights = self.attention_weights(query).view(1, -1, self.num_heads, self.num_levels * self.num_points)
        repeated = places.repeat(1, self.num_points // places.shape[1], 1)  # point p is around p mod Z
        locations = repeated[None, :, None, None] + offsets
        return multi_scale_deformable_attn_pytorch(
            self.values_of(tokens), sizes, locations, weights.softmax(-1).view(1, -1, *split)
        )


@registered_if_named(ATTENTION, builds=('MSDeformableAttention3D',))
class SpatialCrossAttention(BaseModule):
    """Cells of the bird's-eye view look into the cameras that see their pillars; the mean over these.

    `embed_dims` is C, `num_cams` N. `deformable_attention` is the config of the attention that samples; None:
    `MSDeformableAttention3D` with four levels. `pc_range`, `dropout`, `init_cfg`, `batch_first` and the
    options in `training` are not used at test time.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_cams: int = 6,
        pc_range: Sequence[float] | None = None,
        dropout: float = 0.1,
        init_cfg: dict | None = None,
        batch_first: bool = False,
        deformable_attention: dict | None = None,
        **training: Any,
    ) -> None:
        super().__init__()
        default = dict(type='MSDeformableAttention3D', embed_dims=embed_dims, num_levels=4)
        self.deformable_attention = build_attention(deformable_attention or default)
        self.embed_dims, self.num_cams = embed_dims, num_cams
        self.output_proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, query: Tensor, maps: Sequence[Tensor], places: Tensor, is_seen: Tensor) -> Tensor:
        """Return what is added to the query (1, Q, C).

        Args:
            query: (1, Q, C).
            maps: of each level (N, C, h, w), embeddings of camera and level added.
            places: (N, Q, Z, 2), x and y of the pillars' points in shares of the pictures.
            is_seen: (N, Q, Z), which of the points are in the pictures.
        """
        sizes = torch.tensor([level.shape[2:] for level in maps], device=query.device)
        total, count = torch.zeros_like(query), query.new_zeros(1, query.shape[1], 1)
        for camera in range(self.num_cams):
            cells = is_seen[camera].any(-1).nonzero()[:, 0]
            tokens = torch.cat([level[camera].flatten(1).t() for level in maps])
            total[:, cells] += self.deformable_attention(
                query[:, cells], tokens[None], places[camera, cells], sizes
            )
            count[:, cells] += 1
        return self.output_proj(total / count.clamp(min=1))


@registered_if_named(ATTENTION)
class CustomMSDeformableAttention(MultiScaleDeformableAttention):
    """Upstream's name for the deformable attention of its decoder, which is mmcv's."""
