"""Deformable attention over several maps, and the decoder layer around it.

Source: lyuwenyu/RT-DETR 068dfde, rtdetr_pytorch/src/zoo/rtdetr/rtdetr_decoder.py, with its parameter names.
Glossary: B batch, D embedding, M heads, L maps, P points per map, Q queries, h, w size of a map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from mmdeploy_ext.upstream.models.rtdetr.layers import SelfAttention
from mmdeploy_ext.upstream.operators.attention import attend_maps, point_weights

FLOAT16_MAX = 65504.0
"""Clamp before the last normalisation of a decoder layer, as in the original."""


class DeformableAttention(nn.Module):
    """Every query reads a few points of every map, around its box."""

    def __init__(self, dim: int, heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.heads, self.num_levels, self.num_points = heads, num_levels, num_points
        total = heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, 2 * total)
        self.attention_weights = nn.Linear(dim, total)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(
        self, query: torch.Tensor, boxes_cxcywh: torch.Tensor, maps: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return (B, Q, D): queries (B, Q, D) with boxes in 0..1 look at maps (B, D, h, w)."""
        locations, weights = self.locations(query, boxes_cxcywh), self.weights(query)
        # a 1x1 convolution is the value projection without the two transposes around it
        values = [
            F.conv2d(level, self.value_proj.weight[:, :, None, None], self.value_proj.bias)
            .unflatten(1, (self.heads, -1))
            .flatten(0, 1)
            for level in maps
        ]
        mixed = attend_maps(values, locations, weights)
        return self.output_proj(mixed.reshape(query.shape[0], query.shape[2], -1).transpose(1, 2))

    def locations(self, query: torch.Tensor, boxes_cxcywh: torch.Tensor) -> torch.Tensor:
        """Return (B, Q, M, L, P, 2) x, y for `grid_sample`: -1..1 is the map; points may lie outside."""
        shape = (self.heads, self.num_levels, self.num_points, 2)
        offsets = self.sampling_offsets(query).unflatten(-1, shape)
        centre, size = boxes_cxcywh[:, :, None, None, None].chunk(2, -1)
        return 2 * (centre + offsets / self.num_points * size * 0.5) - 1

    def weights(self, query: torch.Tensor) -> torch.Tensor:
        """Return (B * M, 1, Q, L * P), summing to 1 over the last axis."""
        return point_weights(self.attention_weights(query), self.heads)


class DecoderLayer(nn.Module):
    """Self-attention of queries, attention to the maps, feed-forward network."""

    def __init__(
        self, dim: int, heads: int, feedforward: int, dropout: float, num_levels: int, num_points: int
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, heads)
        self.cross_attn = DeformableAttention(dim, heads, num_levels, num_points)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self,
        target: torch.Tensor,
        position: torch.Tensor,
        boxes_cxcywh: torch.Tensor,
        maps: Sequence[torch.Tensor],
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (B, Q, D) of `target` (B, Q, D) around boxes in 0..1.

        `position` (B, Q, D) is added to queries and keys; `mask` (Q, Q) is True where a row must not look at
        a column.
        """
        target = self.norm1(target + self.dropout(self.self_attn(target, position, mask)))
        attended = self.cross_attn(target + position, boxes_cxcywh, maps)
        target = self.norm2(target + self.dropout(attended))
        inner = self.linear2(self.dropout(self.linear1(target).relu()))
        return self.norm3((target + self.dropout(inner)).clamp(-FLOAT16_MAX, FLOAT16_MAX))
