"""RT-DETR's decoder: query selection by the class score of encoder tokens, layers that refine boxes.

Source: lyuwenyu/RT-DETR 068dfde, rtdetr_pytorch/src/zoo/rtdetr/rtdetr_decoder.py, with its parameter names.
Glossary: B batch, C classes, D embedding, h, w size of a map, N tokens of all maps (fine to coarse, row by
row), Q queries, n detections.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import bias_init_with_prob, constant_init
from mmcv.runner import BaseModule
from mmdet.models.builder import HEADS
from torch import nn

from mmdeploy_ext.base.errors import ConfigError, ShapeError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.conditional_detr import cxcywh_to_xyxy
from mmdeploy_ext.upstream.models.rtdetr.encoder import MLP, SelfAttention
from mmdeploy_ext.upstream.operators.attention import attend_maps, point_weights

# Deformable attention over several maps, and the decoder layer around it.
#
# Source: lyuwenyu/RT-DETR 068dfde, rtdetr_pytorch/src/zoo/rtdetr/rtdetr_decoder.py, with its parameter
# names.
# Glossary: B batch, D embedding, M heads, L maps, P points per map, Q queries, h, w size of a map.


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


inverse_sigmoid = mmdet_module('mmdet.models.utils.transformer').inverse_sigmoid

ANCHOR_SIZE = 0.05
"""Side of an anchor on the finest map, relative to the image; doubles from map to map."""
MARGINS = 100
"""Anchors with centres within 1 / 100 of the side from the border do not count."""
TRAINING = {'num_denoising', 'label_noise', 'box_noise'}
PRIOR_PROBABILITY = 0.01


class Anchors(nn.Module):
    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits of anchors cx, cy, w, h (N, 4), infinite at the border, and (N, 1), 0 or 1."""
        levels = [self._level(features, level) for level, features in enumerate(maps)]
        anchors, valid = (torch.cat(parts) for parts in zip(*levels, strict=True))
        logits = torch.log(anchors / (1 - anchors))
        boxes = torch.where(valid, logits, torch.full_like(logits, float('inf')))
        return boxes, valid.to(boxes.dtype)

    @staticmethod
    def _level(features: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = features.shape[2], features.shape[3]
        y, x = (
            (torch.arange(size, device=features.device).to(features.dtype) + 0.5) / size
            for size in (height, width)
        )
        rows, columns = (inside_margin(size, features.device) for size in (height, width))
        centres = torch.stack([x[None, :].expand(height, width), y[:, None].expand(height, width)], -1)
        anchors = torch.cat([centres, torch.full_like(centres, ANCHOR_SIZE * 2.0**level)], -1)
        return anchors.flatten(0, 1), (rows[:, None] & columns[None, :]).reshape(-1, 1)


def inside_margin(size: int, device: torch.device) -> torch.Tensor:
    """Return (size,) bool: whether centres (2i + 1) / (2 size) are inside of the margin.

    In whole numbers, because centres on the margin itself (0.5 / 50, at 800 pixels and stride 16) depend on
    an engine's division: OpenVINO 2026.4 keeps such tokens, which changes all queries; PyTorch and ONNX
    Runtime do not.
    """
    scaled = (2 * torch.arange(size, device=device) + 1) * MARGINS
    return (scaled > 2 * size) & (scaled < 2 * size * (MARGINS - 1))


@dataclasses.dataclass(frozen=True)
class Selection:
    tokens: torch.Tensor  # (B, Q) int64, by descending score unless they were given
    target: torch.Tensor  # (B, Q, D) their content
    boxes_logit: torch.Tensor  # (B, Q, 4) cx, cy, w, h before the sigmoid
    logits: torch.Tensor  # (B, Q, C) class logits of the encoder


@registered_if_named(HEADS)
class RTDETRDecoder(BaseModule):
    """Three maps to Q boxes with class logits; no NMS."""

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int] = (256, 256, 256),
        hidden_dim: int = 256,
        num_queries: int = 300,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward: int = 1024,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
        **training: Any,
    ) -> None:
        if unknown := sorted(training.keys() - TRAINING):
            raise ConfigError(f'model.decoder has unknown keys: {", ".join(unknown)}')
        super().__init__(init_cfg)
        self.num_classes, self.num_queries, self.num_layers = num_classes, num_queries, num_layers
        dim = hidden_dim
        self.input_proj = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, dim, 1, bias=False), norm=nn.BatchNorm2d(dim)))
            for channels in in_channels
        )
        sizes = (dim, num_heads, feedforward, dropout, len(in_channels), num_points)
        layers = nn.ModuleList(DecoderLayer(*sizes) for _ in range(num_layers))
        self.decoder = nn.ModuleDict(dict(layers=layers))  # the original's `decoder.decoder.layers`
        self.denoising_class_embed = nn.Embedding(num_classes + 1, dim, padding_idx=num_classes)
        self.query_pos_head = MLP(4, 2 * dim, dim, 2)
        self.enc_output = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.enc_score_head = nn.Linear(dim, num_classes)
        self.enc_bbox_head = MLP(dim, dim, 4, 3)
        self.dec_score_head = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(num_layers))
        self.dec_bbox_head = nn.ModuleList(MLP(dim, dim, 4, 3) for _ in range(num_layers))
        self.anchors = Anchors()
        for head in (self.enc_score_head, *self.dec_score_head):
            nn.init.constant_(head.bias, bias_init_with_prob(PRIOR_PROBABILITY))
        for head in (self.enc_bbox_head, *self.dec_bbox_head):
            constant_init(head.layers[-1], 0)
        for layer in (self.enc_output[0], *self.query_pos_head.layers):
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self, features: Sequence[torch.Tensor], tokens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return class logits (B, Q, C), boxes cxcywh (B, Q, 4) relative to the input, tokens (B, Q).

        Features are (B, channels, h, w); `tokens` (B, Q) int64 replace the best tokens, for proofs.
        """
        maps = self.project(features)
        selection = self.select(maps, tokens)
        target, boxes = selection.target, selection.boxes_logit.sigmoid()
        for layer, head in zip(self.decoder.layers, self.dec_bbox_head, strict=True):
            target = layer(target, self.query_pos_head(boxes), boxes, maps)
            boxes = (head(target) + inverse_sigmoid(boxes)).sigmoid()
        logits = self.dec_score_head[-1](target)
        return tap('pred_logits', logits), tap('pred_boxes', boxes), tap('tokens', selection.tokens)

    def project(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the encoder's levels (B, channels, h, w) as maps (B, D, h, w)."""
        return [project(level) for project, level in zip(self.input_proj, features, strict=True)]

    def tokens(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return token content (B, N, D), class logits (B, N, C) and logits of anchors (N, 4)."""
        anchors, valid = self.anchors(maps)
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)
        content = self.enc_output(memory * valid)
        return content, self.enc_score_head(content), anchors

    def select(self, maps: Sequence[torch.Tensor], tokens: torch.Tensor | None = None) -> Selection:
        """Return the Q tokens with the largest class logit, or `tokens` (B, Q) int64, as queries.

        Maps are (B, D, h, w), projected.
        """
        content, logits, anchors = self.tokens(maps)
        if content.shape[1] < self.num_queries:
            raise ShapeError(
                f'images: these sizes give {int(content.shape[1])} tokens, which is less than '
                f'num_queries={self.num_queries}; use larger images or fewer queries'
            )
        if tokens is None:
            tokens = logits.amax(-1).topk(self.num_queries, dim=1).indices
        target = _rows(content, tokens)
        anchors = F.embedding(tokens, anchors)  # one table for all images
        return Selection(tokens, target, self.enc_bbox_head(target) + anchors, _rows(logits, tokens))


def _rows(table: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return table.gather(1, tokens[..., None].expand(-1, -1, table.shape[-1]))


class Postprocess(nn.Module):
    """Logits and boxes to the best (query, class) pairs, in pixels; no threshold, no clipping.

    Source: rtdetr_pytorch/src/zoo/rtdetr/rtdetr_postprocessor.py.
    """

    def __init__(self, num_classes: int, max_per_img: int) -> None:
        super().__init__()
        self.num_classes, self.max_per_img = num_classes, max_per_img

    def forward(
        self, logits: torch.Tensor, boxes: torch.Tensor, orig_target_sizes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return labels (B, n) int64, boxes (B, n, 4) xyxy pixels, scores (B, n) descending.

        Logits are (B, Q, C), boxes (B, Q, 4) cxcywh in 0..1; `orig_target_sizes` (B, 2) are width and height.
        """
        scores, index = logits.sigmoid().flatten(1).topk(self.max_per_img, dim=1)
        query = torch.div(index, self.num_classes, rounding_mode='floor')
        labels = index - query * self.num_classes
        pixels = cxcywh_to_xyxy(boxes) * orig_target_sizes.to(boxes.dtype).repeat(1, 2)[:, None]
        return tap('labels', labels), tap('boxes', _rows(pixels, query)), tap('scores', scores)
