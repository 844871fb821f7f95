"""Conditional DETR and DAB-DETR: the parts of mmdet 3 that mmdet 2.28 lacks, around its DETR.

Source: mmdet 3.3.0 `layers/transformer/{conditional_detr,dab_detr}_layers.py`, `ConditionalAttention` of
`utils.py`, `dense_heads/{conditional_detr,dab_detr}_head.py`.
Glossary: B batch (or 1, for all images), Q queries, C columns of the class logits, D embedding, S tokens of
the map, h, w its size.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.builder import DETECTORS, HEADS
from mmdet.models.utils.builder import TRANSFORMER
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

dense_heads, detectors = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.models.detectors')
transformer = mmdet_module('mmdet.models.utils.transformer')
inverse_sigmoid = transformer.inverse_sigmoid

TEMPERATURE = 10000
LEAST_ODDS = 1e-3
"""Least distance from 0 and 1 of a box's numbers, before DAB-DETR's results."""
FIXED = dict(query_dim=4, query_scale_type='cond_elewise', with_modulated_hw_attn=True)
"""Settings of DAB-DETR's decoder that no config of mmdet 3.3 changes."""


class Mlp(nn.Module):
    """Linear layers of `sizes`, with ReLU between."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *inner, last = self.layers
        for layer in inner:
            x = layer(x).relu()
        return last(x)


def encoded(places: torch.Tensor, features: int) -> torch.Tensor:
    """Return sines and cosines (B, Q, n * features) of places (B, Q, n): y, x, and width, height."""
    exponents = torch.arange(0, features, 2, dtype=places.dtype, device=places.device) / features
    order = [1, 0, *range(2, places.shape[-1])]
    angles = places[..., order, None] * (2 * math.pi) / TEMPERATURE**exponents
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)


class ConditionalAttention(nn.Module):
    """Attention with projections of content and place; across, the place of a query is beside its content."""

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        cross_attn: bool = False,
        keep_query_pos: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        self.num_heads, self.keep_query_pos = num_heads, keep_query_pos
        names = ['qcontent_proj', 'qpos_proj', 'kcontent_proj', 'kpos_proj', 'v_proj', 'out_proj']
        for name in [*names, 'qpos_sine_proj'] if cross_attn else names:
            self.add_module(name, nn.Linear(embed_dims, embed_dims))

    def among(self, query: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return what queries (B, Q, D) at `places` get of each other, plus themselves."""
        q, k = self.qcontent_proj(query) + self.qpos_proj(places), self.kcontent_proj(query)
        return query + self.attend(q, k + self.kpos_proj(places), self.v_proj(query))

    def across(
        self,
        query: torch.Tensor,
        places: torch.Tensor,
        sine: torch.Tensor,
        memory: torch.Tensor,
        position: torch.Tensor,
        padded: torch.Tensor,
    ) -> torch.Tensor:
        """Return what queries get of memory (B, S, D), plus themselves; `padded` (B, S) is left out."""
        q, k, at = self.qcontent_proj(query), self.kcontent_proj(memory), self.kpos_proj(position)
        if self.qpos_proj is not None:
            q, k = q + self.qpos_proj(places), k + at
        q, k, sine, at = (
            part.unflatten(2, (self.num_heads, -1)) for part in (q, k, self.qpos_sine_proj(sine), at)
        )
        sine, at = sine.expand_as(q), at.expand_as(k)
        q, k = torch.cat([q, sine], 3).flatten(2), torch.cat([k, at], 3).flatten(2)
        return query + self.attend(q, k, self.v_proj(memory), padded)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padded: torch.Tensor | None = None
    ) -> torch.Tensor:
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        if padded is not None:
            weights = weights.masked_fill(padded[:, None, None], float('-inf'))
        return self.out_proj((weights.softmax(-1) @ v).transpose(1, 2).flatten(2))


class ConditionalLayer(nn.Module):
    """Attention of queries among themselves, across to the memory, and linear layers."""

    def __init__(
        self,
        self_attn_cfg: Mapping[str, Any],
        cross_attn_cfg: Mapping[str, Any],
        ffn_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.self_attn = ConditionalAttention(**self_attn_cfg)
        self.cross_attn = ConditionalAttention(**cross_attn_cfg)
        self.ffn = FFN(**ffn_cfg)
        own_activation(self.ffn)
        self.norms = nn.ModuleList(nn.LayerNorm(self_attn_cfg['embed_dims']) for _ in range(3))

    def forward(self, query: torch.Tensor, places: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        query = self.norms[0](self.self_attn.among(query, places))
        query = self.norms[1](self.cross_attn.across(query, places, *rest))
        return self.norms[2](self.ffn(query))


def own_activation(ffn: nn.Module) -> None:
    """Remove the second name of the activation, whose parameters mmcv 2 has in `layers` alone."""
    del ffn.activate


@registered_if_named(TRANSFORMER_LAYER_SEQUENCE)
class ConditionalDetrTransformerDecoder(nn.Module):
    """Conditional DETR's decoder; each query has a point."""

    def __init__(self, num_layers: int, layer_cfg: Mapping[str, Any], **_: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConditionalLayer(**layer_cfg) for _ in range(num_layers))
        self.embed_dims = size = layer_cfg['self_attn_cfg']['embed_dims']
        self.num_layers, self.post_norm = num_layers, nn.LayerNorm(size)
        self.query_scale = Mlp(size, size, size)
        self.ref_point_head = Mlp(size, size, 2)
        for layer in self.layers[1:]:
            if not layer.cross_attn.keep_query_pos:
                layer.cross_attn.qpos_proj = None

    def forward(
        self,
        embedding: torch.Tensor,
        memory: torch.Tensor,
        position: torch.Tensor,
        padded: torch.Tensor,
        branch: nn.Module | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last queries (B, Q, D), normalised, and their points (B, Q, 2) or boxes (B, Q, 4), 0..1.

        `embedding` (Q, D or 4) is learned, `memory` (B, S, D), `position` (B, S, D), `padded` (B, S) bool;
        `branch` moves DAB-DETR's boxes after a layer.
        """
        places = embedding[None]
        points = self.ref_point_head(places).sigmoid()
        query = torch.zeros_like(places)
        for index, layer in enumerate(self.layers):
            sine = encoded(points, self.embed_dims // 2)
            sine = sine * self.query_scale(query) if index else sine
            query = layer(query, places, sine, memory, position, padded)
        return self.post_norm(query), points


@registered_if_named(TRANSFORMER_LAYER_SEQUENCE)
class DABDetrTransformerDecoder(ConditionalDetrTransformerDecoder):
    """DAB-DETR's decoder; each query has a box, which every layer moves."""

    def __init__(self, num_layers: int, layer_cfg: Mapping[str, Any], **settings: Any) -> None:
        super().__init__(num_layers, layer_cfg)
        for key, value in FIXED.items():
            if settings.get(key, value) != value:
                raise ConfigError(f'model.decoder.{key}={settings[key]!r}: expected {value!r}')
        size = self.embed_dims
        self.ref_point_head, self.ref_anchor_head = Mlp(2 * size, size, size), Mlp(size, size, 2)

    def forward(
        self,
        embedding: torch.Tensor,
        memory: torch.Tensor,
        position: torch.Tensor,
        padded: torch.Tensor,
        branch: nn.Module | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size, boxes = self.embed_dims, embedding[None].sigmoid()
        query = embedding.new_zeros(1, embedding.shape[0], size)
        for index, layer in enumerate(self.layers):
            sine = encoded(boxes, size // 2)
            places, sine = self.ref_point_head(sine), sine[..., :size]
            sine = sine * self.query_scale(query) if index else sine
            sides = self.ref_anchor_head(query).sigmoid() / boxes[..., 2:]  # width, height
            sine = (sine.unflatten(-1, (2, -1)) * sides.flip(-1)[..., None]).flatten(-2)
            query = layer(query, places, sine, memory, position, padded)
            if index < self.num_layers - 1:
                boxes = (branch(query) + inverse_sigmoid(boxes)).sigmoid()
        return self.post_norm(query), boxes


@registered_if_named(TRANSFORMER_LAYER_SEQUENCE)
class DABDetrTransformerEncoder(transformer.DetrTransformerEncoder):
    """DETR's encoder; tokens scale their positions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.query_scale = Mlp(self.embed_dims, self.embed_dims, self.embed_dims)
        for layer in self.layers:
            own_activation(layer.ffns[0])

    def forward(
        self, query: torch.Tensor, *args: Any, query_pos: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Return tokens (S, B, D) of tokens `query` at `query_pos`, both (S, B, D)."""
        for layer in self.layers:
            query = layer(query, *args, query_pos=query_pos * self.query_scale(query), **kwargs)
        return query


@registered_if_named(TRANSFORMER)
class ConditionalDetrTransformer(transformer.Transformer):
    """Encoder and decoder of Conditional DETR and DAB-DETR."""

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor,
        query_embed: torch.Tensor,
        pos_embed: torch.Tensor,
        branch: nn.Module,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the decoder's results of a map, its encoding (B, D, h, w) and padding `mask` (B, h, w)."""
        tokens, position = (maps.flatten(2).permute(2, 0, 1) for maps in (x, pos_embed))
        padded = mask.flatten(1)
        memory = self.encoder(
            query=tokens, key=None, value=None, query_pos=position, query_key_padding_mask=padded
        )
        return self.decoder(query_embed, memory.transpose(0, 1), position.transpose(0, 1), padded, branch)


@registered_if_named(DETECTORS)
class ConditionalDETR(detectors.DETR):
    """DETR with a `ConditionalDETRHead`."""


@registered_if_named(DETECTORS)
class DABDETR(detectors.DETR):
    """DETR with a `DABDETRHead`."""


@registered_if_named(HEADS)
class ConditionalDETRHead(dense_heads.DETRHead):
    """DETR's branches; boxes are around a point of their query."""

    least_odds = 1e-5

    def branch(self, query: torch.Tensor) -> torch.Tensor:
        """Return the last numbers (B, Q, 4) of boxes before the sigmoid."""
        return self.fc_reg(self.activate(self.reg_ffn(query)))

    def branches(self, query: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return class logits (B, Q, C) and boxes cxcywh (B, Q, 4) of the decoder's results."""
        places = inverse_sigmoid(places, eps=self.least_odds)
        return self.fc_cls(query), (self.branch(query) + F.pad(places, (0, 4 - places.shape[-1]))).sigmoid()

    def forward_single(
        self, x: torch.Tensor, img_metas: Sequence[Mapping[str, Any]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return class logits (1, B, Q, C) and boxes cxcywh (1, B, Q, 4) of the last layer.

        `x` is (B, channels, h, w); metas have `batch_input_shape` and `img_shape`.
        """
        outside = x.new_ones((len(img_metas), *img_metas[0]['batch_input_shape']))
        for image, meta in enumerate(img_metas):
            height, width = meta['img_shape'][:2]
            outside[image, :height, :width] = 0
        x = self.input_proj(x)
        padded = F.interpolate(outside[None], size=x.shape[-2:])[0].to(torch.bool)
        encoding = self.positional_encoding(padded)
        results = self.transformer(x, padded, self.query_embedding.weight, encoding, self.branch)
        logits, boxes = self.branches(*results)
        return logits[None], boxes[None]


@registered_if_named(HEADS)
class DABDETRHead(ConditionalDETRHead):
    """Class logits, and steps from the boxes of the last layer."""

    least_odds = LEAST_ODDS

    def _init_layers(self) -> None:
        size = self.embed_dims
        self.input_proj = nn.Conv2d(self.in_channels, size, 1)
        self.fc_cls, self.fc_reg = nn.Linear(size, self.cls_out_channels), Mlp(size, size, size, 4)
        self.query_embedding = nn.Embedding(self.num_query, 4)

    def branch(self, query: torch.Tensor) -> torch.Tensor:
        return self.fc_reg(query)
