"""Conditional DETR and DAB-DETR: the parts of mmdet 3 that mmdet 2.28 lacks, around its DETR.

Source: mmdet 3.3.0 `layers/transformer/{conditional_detr,dab_detr}_layers.py`, `ConditionalAttention` of
`utils.py`, `dense_heads/{conditional_detr,dab_detr}_head.py`.
Glossary: B batch (or 1, for all images), Q queries, C columns of the class logits, D embedding, S tokens of
the map, h, w its size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.builder import DETECTORS, HEADS
from mmdet.models.utils.builder import TRANSFORMER
from torch import Tensor, nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.operators.attention import multi_head

if TYPE_CHECKING:
    Attend = Callable[[nn.Module, Tensor], Tensor]
    """(attention of mmcv, queries (B, Q, D)) -> (B, Q, D), without its shortcut."""


# Layers of mmcv's transformers, batch first, with exportable attentions.
#
# Source: mmcv-full 1.7.2, `cnn/bricks/transformer.py` (`BaseTransformerLayer`).
# Glossary: B batch, Q queries, K keys, D embedding, M heads of an attention.


def run_layer(layer: nn.Module, query: Tensor, attend: Mapping[str, Attend]) -> Tensor:
    """Run one `BaseTransformerLayer` of mmcv on (B, Q, D)."""
    attentions, norms, ffns = iter(layer.attentions), iter(layer.norms), iter(layer.ffns)
    identity = query
    for step in layer.operation_order:
        if step == 'norm':
            query = next(norms)(query)
        elif step == 'ffn':
            query = next(ffns)(query, identity if layer.pre_norm else None)
        else:
            attended = attend[step](next(attentions), query)
            query = identity = attended + (identity if layer.pre_norm else query)
    return query


def attend_to(
    attention: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Run mmcv's `MultiheadAttention` without its shortcut: query (B, Q, D) to (B, Q, D).

    `key` and `value` are (B, K, D); positions are added; `mask`, bool, broadcast to (B, M, Q, K), is True
    where a query must not look.
    """
    layer = attention.attn
    heads = multi_head((query, key, value), layer.in_proj_weight, layer.in_proj_bias, layer.num_heads, mask)
    return layer.out_proj(heads)


def among_themselves(position: Tensor, mask: Tensor | None = None) -> Attend:
    """Return a self-attention with positions (B or 1, Q, D) added to queries and keys."""

    def attend(attention: nn.Module, tokens: Tensor) -> Tensor:
        positioned = tokens + position
        return attend_to(attention, positioned, positioned, tokens, mask)

    return attend


# Decoder outputs of queries to boxes, without NMS: branches of a head, and its coder.
#
# Source: fundamentalvision/BEVFormer 66b65f3 and megvii-research/PETR f7525f9,
# `core/bbox/coders/nms_free_coder.py`, `core/bbox/util.py`.
# Glossary: B samples, R queries, K classes, n boxes.


def class_branch(channels: int, layers: int, classes: int) -> nn.Sequential:
    """Return `layers` hidden linear layers with normalisation and ReLU, and the layer of the logits."""
    steps: list[nn.Module] = []
    for _ in range(layers):
        steps += [nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*steps, nn.Linear(channels, classes))


def box_branch(channels: int, layers: int, numbers: int) -> nn.Sequential:
    """Return `layers` hidden linear layers with ReLU, and the layer of the box `numbers`."""
    steps: list[nn.Module] = []
    for _ in range(layers):
        steps += [nn.Linear(channels, channels), nn.ReLU()]
    return nn.Sequential(*steps, nn.Linear(channels, numbers))


LOWEST_THRESHOLD, LOWERED = 0.01, 0.9
"""Factor that lowers a threshold until a score passes; below `LOWEST_THRESHOLD` all scores pass."""


def passing(scores: Tensor, threshold: float | None) -> Tensor:
    """Return (n,) bool: scores above the threshold, which is lowered until some pass."""
    if not threshold:
        return torch.ones_like(scores, dtype=torch.bool)
    keep = scores > threshold
    while not keep.any():
        threshold *= LOWERED
        if threshold < LOWEST_THRESHOLD:
            return torch.ones_like(keep)
        keep = scores >= threshold
    return keep


class QueryBoxCoder:
    """The best (query, class) pairs as boxes; one query may give several.

    Args:
        pc_range: of the model, m; unused by decoding.
        post_center_range: x, y, z low, then high, m, of kept centres, ends included.
        max_num: most pairs.
        score_threshold: see `passing`; None keeps all.
        num_classes: K.
        voxel_size: unused.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        voxel_size: Sequence[float] | None = None,
        post_center_range: Sequence[float] | None = None,
        max_num: int = 100,
        score_threshold: float | None = None,
        num_classes: int = 10,
    ) -> None:
        if post_center_range is None:
            name = type(self).__name__
            raise ConfigError(f'{name}: post_center_range is missing; give x, y, z low then high in m')
        self.pc_range, self.post_center_range = pc_range, post_center_range
        self.max_num, self.score_threshold, self.num_classes = max_num, score_threshold, num_classes

    def passing(self, scores: Tensor) -> Tensor:
        return passing(scores, self.score_threshold)

    def boxes_of(self, codes: Tensor) -> Tensor:
        """Return boxes (n, 9) of codes (n, 10)."""
        yaw = torch.atan2(codes[:, 6:7], codes[:, 7:8])
        return torch.cat([codes[:, [0, 1, 4]], codes[:, [2, 3, 5]].exp(), yaw, codes[:, 8:]], -1)

    def decode_single(self, logits: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Decode logits (R, K) and box codes (R, 10) of one sample.

        Returns:
            'bboxes' (n, 9) in the LiDAR frame: centre x, y, z, width, length, height in m, yaw in rad from -y
                clockwise, velocity x, y in m/s (for a model of mmdet3d 1.x length, width, and yaw from x
                counter-clockwise); 'scores' (n,), falling; 'labels' (n,); 'rows' (n,) of the codes. Kept are
                pairs of the best `max_num` within the range that pass `passing`.
        """
        if logits.shape[-1] != self.num_classes:
            raise ConfigError(
                f'{type(self).__name__}: bbox_coder.num_classes={self.num_classes}, expected '
                f'{logits.shape[-1]}, the number of classes of the head'
            )
        scores, pairs = logits.sigmoid().view(-1).topk(min(self.max_num, logits.numel()))
        rows = torch.div(pairs, self.num_classes, rounding_mode='floor')
        bboxes = self.boxes_of(codes[rows])
        low, high = bboxes.new_tensor(self.post_center_range).split(3)
        keep = ((bboxes[:, :3] >= low) & (bboxes[:, :3] <= high)).all(1) & self.passing(scores)
        labels = pairs % self.num_classes
        return dict(bboxes=bboxes[keep], scores=scores[keep], labels=labels[keep], rows=rows[keep])


def decoded_samples(
    coder: QueryBoxCoder, outputs: Mapping[str, Tensor], img_metas: Sequence[Mapping[str, Any]]
) -> list[list[Any]]:
    """Return boxes, scores (n,) and labels (n,) of each sample, best first, from the last decoder layer.

    `outputs` are `all_cls_scores` (layers, B, R, K), logits, and `all_bbox_preds` (layers, B, R, 10).
    """
    samples = []
    last = zip(outputs['all_cls_scores'][-1], outputs['all_bbox_preds'][-1], img_metas, strict=True)
    for logits, codes, meta in last:
        decoded = coder.decode_single(logits, codes)
        bottom = decoded['bboxes'].clone()
        bottom[:, 2] -= bottom[:, 5] * 0.5
        boxes = meta['box_type_3d'](bottom, bottom.shape[-1])
        samples.append([boxes, decoded['scores'], decoded['labels']])
    return samples


# Boxes as cxcywh and as xyxy; nothing is scaled.


def cxcywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    """Return (..., 4) x1 y1 x2 y2 of centre and size."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], -1)


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
