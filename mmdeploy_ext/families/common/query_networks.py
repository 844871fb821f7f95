"""DETR, Deformable DETR, H-DETR, DINO and Co-DINO as modules for graphs of any size, batch and padding.

Sources: mmdet 2.28.2 `dense_heads/{detr,deformable_detr}_head.py` and `utils/transformer.py`; mmcv-full 1.7.2
`cnn/bricks/transformer.py` (`BaseTransformerLayer`).
Glossary: B batch, Q queries, K keys, C columns of the class logits, D embedding, S tokens of all levels, L
levels, M heads of an attention, H, W network input in pixels, h, w size of a map.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from mmcv.cnn.bricks.transformer import TransformerLayerSequence
from torch import nn

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.families.common.image_graphs import clip_size
from mmdeploy_ext.families.common.padding import (
    PaddedMap,
    PaddedSinePositions,
    SinePositions,
    periods,
    tokens_of,
    waves,
)
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.conditional_detr import among_themselves, attend_to, run_layer
from mmdeploy_ext.upstream.models.dino import NO_RESULT
from mmdeploy_ext.upstream.operators.attention import attend_tokens
from mmdeploy_ext.upstream.operators.operator import hw

if TYPE_CHECKING:
    from collections.abc import Sequence

inverse_sigmoid = mmdet_module('mmdet.models.utils.transformer').inverse_sigmoid

NAMES = ('logits', 'boxes')
TOKEN_SCORES = 'token_scores'
"""Further output of a network with tokens as queries: scores (B, S)."""
SIDE = 0.05
"""Side of a proposal of the finest level, share of the image; doubles with each level."""
BORDER = 0.01
"""Proposals with a number this close to 0 or 1 count as padding."""
PROPOSAL_FEATURES, TEMPERATURE = 128, 10000
"""Features per number of a box, and temperature, of the proposals' encoding."""
Y_FIRST = [1, 0, 2, 3]
"""DINO's order of a box's numbers: y before x, but width before height."""


# --- layers of mmcv's transformers ----------------------------------------------------------------------


def encode_tokens(
    encoder: nn.Module, tokens: torch.Tensor, position: torch.Tensor, padded: torch.Tensor
) -> torch.Tensor:
    """Run a `DetrTransformerEncoder`: tokens (B, S, D) attend to each other.

    `position` is (B or 1, S, D); `padded` (B, 1, 1, S) bool masks tokens.
    """
    scale = getattr(encoder, 'query_scale', None)  # of DAB-DETR
    for layer in encoder.layers:
        places = position if scale is None else position * scale(tokens)
        tokens = run_layer(layer, tokens, dict(self_attn=among_themselves(places, padded)))
    return tokens if encoder.post_norm is None else encoder.post_norm(tokens)


def decode_queries(
    decoder: nn.Module,
    memory: torch.Tensor,
    position: torch.Tensor,
    query_position: torch.Tensor,
    padded: torch.Tensor,
) -> torch.Tensor:
    """Run a `DetrTransformerDecoder` on queries of zeros; return the last queries (B, Q, D).

    `memory` (B, S, D), `position` (B or 1, S, D), `query_position` (1, Q, D), `padded` (B, 1, 1, S) bool
    masks tokens.
    """
    key = memory + position

    def cross_attend(attention: nn.Module, query: torch.Tensor) -> torch.Tensor:
        return attend_to(attention, query + query_position, key, memory, padded)

    attend = dict(self_attn=among_themselves(query_position), cross_attn=cross_attend)
    query = for_every_image(torch.zeros_like(query_position), memory.shape[0])
    for layer in decoder.layers:
        query = run_layer(layer, query, attend)
    return query if decoder.post_norm is None else decoder.post_norm(query)


def for_every_image(learned: torch.Tensor, batch: int | torch.Tensor | torch.SymInt) -> torch.Tensor:
    """Return learned queries (1, Q, D) as (B, Q, D)."""
    if isinstance(batch, torch.SymInt):
        return learned.repeat(batch, 1, 1)
    return learned.expand(batch, -1, -1)


def tokens_inside(levels: Sequence[PaddedMap]) -> torch.Tensor:
    """Return (B, S, 1) float32, 1 in the image, 0 in padding."""
    return torch.cat([level.inside() for level in levels], 1)[..., None]


def reference_points(levels: Sequence[PaddedMap], ratios: torch.Tensor) -> torch.Tensor:
    """Return (B, S, L, 2): x, y of every token in every map, shares of the map; `ratios` are (B, L, 2)."""
    centres = []
    for index, level in enumerate(levels):
        y = (level.rows.place + 0.5) / (ratios[:, index, 1, None] * level.rows.cells)
        x = (level.columns.place + 0.5) / (ratios[:, index, 0, None] * level.columns.cells)
        centres.append(level.grid(y, x))
    return torch.cat(centres, 1)[:, :, None] * ratios[:, None]


def encode_points(
    encoder: nn.Module,
    tokens: torch.Tensor,
    position: torch.Tensor,
    reference: torch.Tensor,
    attend_points: functools.partial,
) -> torch.Tensor:
    """Run a `DetrTransformerEncoder`: tokens (B, S, D) attend to points of all maps.

    `position` is (B or 1, S, D); `attend_points` is `attend_tokens` with `keep` and `sizes`.
    """

    def attend(attention: nn.Module, query: torch.Tensor) -> torch.Tensor:
        return attend_points(attention, query + position, query, reference_points=reference)

    for layer in encoder.layers:
        tokens = run_layer(layer, tokens, dict(self_attn=attend))
    without_norm = encoder.post_norm is None or type(encoder).forward is TransformerLayerSequence.forward
    return tokens if without_norm else encoder.post_norm(tokens)


# --- networks -------------------------------------------------------------------------------------------


def query_head(model: nn.Module) -> nn.Module:
    return model.query_head if hasattr(model, 'query_head') else model.bbox_head


def content_size(model: nn.Module, image: torch.Tensor, img_shape: torch.Tensor) -> torch.Tensor:
    """Return h, w (B, 2), pixels: `img_shape` (B, 2), or the size of `image` where that is 0."""
    if not getattr(model, 'with_attn_mask', True):
        return torch.zeros_like(img_shape) + hw(image).to(img_shape)[None]
    return clip_size(image, img_shape)


class QueryNetwork(nn.Module):
    """Detector and head behind flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.positions = SinePositions(self.head.positional_encoding)

    @property
    def head(self) -> nn.Module:
        return query_head(self.model)

    @property
    def names(self) -> tuple[str, ...]:
        return (*NAMES, TOKEN_SCORES) if getattr(self.head, 'as_two_stage', False) else NAMES

    def forward(self, image: torch.Tensor, img_shape: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return class logits (B, Q, C) and boxes cxcywh (B, Q, 4) relative to `content_size`.

        Detectors that choose tokens return the scores (B, S), too. `image` is (B, 3, H, W) float32
        normalised; `img_shape` (B, 2) is h, w before padding, 0 means H, W.
        """
        content = content_size(self.model, image, img_shape)
        maps = self.maps(image)
        outputs = self.queries(maps, [PaddedMap(content, image, level_map) for level_map in maps])
        return tuple(tap(name, tensor) for name, tensor in zip(self.names, outputs, strict=True))

    def maps(self, image: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the maps (B, D, h, w) of all levels for the transformer."""
        return self.model.extract_feat(image)

    def queries(self, maps: Sequence[torch.Tensor], levels: Sequence[PaddedMap]) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError


class DetrNetwork(QueryNetwork):
    """`DETRHead`: tokens of one map attend to each other, queries to tokens."""

    def maps(self, image: torch.Tensor) -> Sequence[torch.Tensor]:
        return [self.head.input_proj(super().maps(image)[-1])]

    def queries(self, maps: Sequence[torch.Tensor], levels: Sequence[PaddedMap]) -> tuple[torch.Tensor, ...]:
        head, (level,) = self.head, levels
        position = self.positions(level)
        padded = level.inside()[:, None, None] < 0.5
        memory = encode_tokens(head.transformer.encoder, tokens_of(maps), position, padded)
        query_position = head.query_embedding.weight[None]
        query = decode_queries(head.transformer.decoder, memory, position, query_position, padded)
        return head.fc_cls(query), head.fc_reg(head.activate(head.reg_ffn(query))).sigmoid()


class ConditionalNetwork(DetrNetwork):
    """`ConditionalDETRHead`: as DETR, with points or boxes of the queries."""

    def queries(self, maps: Sequence[torch.Tensor], levels: Sequence[PaddedMap]) -> tuple[torch.Tensor, ...]:
        head, (level,) = self.head, levels
        position, padded = self.positions(level), level.inside() < 0.5
        memory = encode_tokens(head.transformer.encoder, tokens_of(maps), position, padded[:, None, None])
        embedding = head.query_embedding.weight
        return head.branches(*head.transformer.decoder(embedding, memory, position, padded, head.branch))


class DeformableNetwork(QueryNetwork):
    """`DeformableDETRHead`: tokens and queries attend to a few points of every map.

    Attributes:
        least_odds: `eps` of `inverse_sigmoid` for boxes moved before the last layer.
        least_odds_of_results: `eps` for boxes moved by the last layer.
    """

    least_odds = 1e-5
    least_odds_of_results = 1e-5

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.register_buffer('waves', periods(PROPOSAL_FEATURES, TEMPERATURE), persistent=False)

    def queries(self, maps: Sequence[torch.Tensor], levels: Sequence[PaddedMap]) -> tuple[torch.Tensor, ...]:
        head = self.head
        keep = tokens_inside(levels)
        ratios = torch.stack([level.ratios() for level in levels], 1)  # (B, L, 2)
        attend_points = functools.partial(attend_tokens, keep=keep, sizes=[level.size for level in levels])
        transformer = head.transformer
        positions = [
            self.positions(level) + transformer.level_embeds[index] for index, level in enumerate(levels)
        ]
        position = torch.cat(positions, 1)
        reference = reference_points(levels, ratios)
        memory = encode_points(transformer.encoder, tokens_of(maps), position, reference, attend_points)
        if head.as_two_stage:
            query, query_position, reference, scores = self._proposals(memory, levels, keep)
            return *self._decode(query, query_position, reference, memory, ratios, attend_points), scores
        learned = self.tested(head.query_embedding.weight[None]).expand(memory.shape[0], -1, -1)
        query_position, query = learned.chunk(2, 2)
        reference = transformer.reference_points(query_position).sigmoid()  # (B, Q, 2)
        return self._decode(query, query_position, reference, memory, ratios, attend_points)

    def best_tokens(
        self, memory: torch.Tensor, levels: Sequence[PaddedMap], keep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return boxes (B, Q, 4) of the best tokens, best first, and scores (B, S) of memory (B, S, D)."""
        head, last = self.head, self.head.transformer.decoder.num_layers
        rows, box_logits = self.token_rows(memory, levels, keep)
        scores = self.token_scores(head.cls_branches[last](rows))
        best = scores.topk(head.transformer.two_stage_num_proposals, 1)[1][..., None]
        best_rows = rows.gather(1, best.expand(-1, -1, rows.shape[2]))
        logits = head.reg_branches[last](best_rows) + box_logits.gather(1, best.expand(-1, -1, 4))
        return logits.sigmoid(), scores

    def token_rows(
        self, memory: torch.Tensor, levels: Sequence[PaddedMap], keep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows (B, S, D) for the branches and proposals (B, S, 4), before the sigmoid, of tokens."""
        transformer, proposals = self.head.transformer, []
        for index, level in enumerate(levels):
            y = (level.rows.place + 0.5) / level.rows.count
            x = (level.columns.place + 0.5) / level.columns.count
            centre = level.grid(y, x)
            proposals.append(torch.cat([centre, torch.full_like(centre, SIDE * 2.0**index)], 2))
        boxes = torch.cat(proposals, 1)
        valid = (boxes.amin(2, True) > BORDER) & (boxes.amax(2, True) < 1 - BORDER) & (keep > 0.5)
        box_logits = torch.where(valid, torch.log(boxes / (1 - boxes)), torch.full_like(boxes, math.inf))
        rows = transformer.enc_output_norm(transformer.enc_output(memory * valid.to(memory.dtype)))
        return rows, box_logits

    @staticmethod
    def token_scores(logits: torch.Tensor) -> torch.Tensor:
        """Return the scores (B, S) of tokens: logits of the first class of (B, S, C)."""
        return logits[..., 0]

    def _proposals(
        self, memory: torch.Tensor, levels: Sequence[PaddedMap], keep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        head, transformer = self.head, self.head.transformer
        boxes, scores = self.best_tokens(memory, levels, keep)
        reference = self.tested(boxes)
        encoded = waves(reference * (2 * math.pi), self.waves).flatten(2)
        encoded = transformer.pos_trans_norm(transformer.pos_trans(encoded))
        query_position, query = encoded.chunk(2, 2)
        if getattr(transformer, 'mixed_selection', False):
            learned = self.tested(head.query_embedding.weight[None])
            query = for_every_image(learned, memory.shape[0])
        return query, query_position, reference, scores

    def tested(self, queries: torch.Tensor) -> torch.Tensor:
        return queries

    def _decode(
        self,
        query: torch.Tensor,
        query_position: torch.Tensor,
        reference: torch.Tensor,
        memory: torch.Tensor,
        ratios: torch.Tensor,
        attend_points: functools.partial,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = self.head
        layers = head.transformer.decoder.layers
        scale = ratios.repeat(1, 1, reference.shape[-1] // 2)[:, None]  # (B, 1, L, 2 or 4)
        seen = None
        for index, layer in enumerate(layers):
            points = reference[:, :, None] * scale
            position = self.position_in_layer(query_position, points)

            def cross_attend(
                attention: nn.Module,
                layer_query: torch.Tensor,
                points: torch.Tensor = points,
                position: torch.Tensor = position,
            ) -> torch.Tensor:
                return attend_points(attention, layer_query + position, memory, reference_points=points)

            unseen = None if seen is None else ~seen[:, None]
            attend = dict(self_attn=among_themselves(position, unseen), cross_attn=cross_attend)
            query = run_layer(layer, query, attend)
            if index < len(layers) - 1 and head.with_box_refine:
                reference = _moved(reference, head.reg_branches[index](query), self.least_odds)
                scale = ratios.repeat(1, 1, 2)[:, None]
                seen = self.seen(seen, head.cls_branches[index], query, reference)
        query = self.output_queries(query)
        boxes = _moved(reference, head.reg_branches[len(layers) - 1](query), self.least_odds_of_results)
        logits = head.cls_branches[len(layers) - 1](query)
        return logits if seen is None else torch.where(seen[:, 0, :, None], logits, NO_RESULT), boxes

    def seen(
        self, seen: torch.Tensor | None, branch: nn.Module, query: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor | None:
        """Return (B, Q, Q) bool, which query looks at which after a layer; None: at all."""
        return None

    def position_in_layer(self, query_position: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Return positions (B, Q, D) of queries in a layer with points (B, Q, L, 2 or 4)."""
        return query_position

    def output_queries(self, query: torch.Tensor) -> torch.Tensor:
        """Return the queries (B, Q, D) of the branches."""
        return query


class HybridBranchNetwork(DeformableNetwork):
    """`HybridBranchDeformableDETRHead` of H-DETR: only the first queries give results.

    Source: H-Deformable-DETR-mmdet 8c8836c, `mmdet/models/dense_heads/hybrid_branch_deformable_detr_head.py`
    and `mmdet/models/utils/transformer.py`.
    """

    def tested(self, queries: torch.Tensor) -> torch.Tensor:
        return queries[:, : self.head.num_query_one2one]


class DinoNetwork(DeformableNetwork):
    """`DINOHead`: learned queries with the boxes of the best tokens; positions follow boxes.

    Sources: mmdet 3.3.0 `detectors/dino.py`, `layers/transformer/dino_layers.py`; Co-DETR 2665352,
    `projects/models/co_dino_head.py` and `transformer.py`.
    """

    least_odds = 1e-3

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.is_of_co_detr = hasattr(self.head.transformer, 'query_embed')
        if self.is_of_co_detr:
            self.least_odds_of_results = 1e-3

    @staticmethod
    def token_scores(logits: torch.Tensor) -> torch.Tensor:
        return logits.amax(-1)

    def _proposals(
        self, memory: torch.Tensor, levels: Sequence[PaddedMap], keep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        query = for_every_image(self.learned_queries()[None], memory.shape[0])
        return query, query, *self.best_tokens(memory, levels, keep)  # no layer uses the positions

    def learned_queries(self) -> torch.Tensor:
        """Return the queries (Q, D)."""
        return (self.head.transformer.query_embed if self.is_of_co_detr else self.head.query_embedding).weight

    def position_in_layer(self, query_position: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        encoded = waves(points[:, :, 0] * (2 * math.pi), self.waves)[..., Y_FIRST, :].flatten(2)
        return self.head.transformer.decoder.ref_point_head(encoded)

    def output_queries(self, query: torch.Tensor) -> torch.Tensor:
        return self.head.transformer.decoder.norm(query)


class DdqNetwork(DinoNetwork):
    """`DDQDETRHead`: as DINO, with distinct tokens as queries, of which every layer keeps distinct ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        # a token of padding may be a query
        self.positions = PaddedSinePositions(self.head.positional_encoding)

    def _proposals(
        self, memory: torch.Tensor, levels: Sequence[PaddedMap], keep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        head, last = self.head, self.head.transformer.decoder.num_layers
        rows, box_logits = self.token_rows(memory, levels, keep)
        logits, moved = head.cls_branches[last](rows), head.reg_branches[last](rows) + box_logits
        query, boxes = head.transformer.first_queries(memory, logits, moved)
        return query, query, boxes, self.token_scores(logits)

    def seen(
        self, seen: torch.Tensor | None, branch: nn.Module, query: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor | None:
        return self.head.transformer.decoder.seen(seen, branch(query), boxes)


def _moved(reference: torch.Tensor, steps: torch.Tensor, eps: float) -> torch.Tensor:
    columns = reference.shape[-1]
    moved = steps[..., :columns] + inverse_sigmoid(reference, eps)
    return torch.cat([moved, steps[..., columns:]], -1).sigmoid()


NETWORKS = dict(
    ConditionalDETRHead=ConditionalNetwork,
    DABDETRHead=ConditionalNetwork,
    DETRHead=DetrNetwork,
    DeformableDETRHead=DeformableNetwork,
    DDQDETRHead=DdqNetwork,
    DINOHead=DinoNetwork,
    CoDINOHead=DinoNetwork,
    HybridBranchDeformableDETRHead=HybridBranchNetwork,
)
