"""DETR, Deformable DETR, DINO and Co-DINO as modules whose graphs take any size, batch and padding.

They run the layers of mmdet's own heads. What decoders give after each layer is for training: here the last
layer speaks alone. Source of the algorithm: mmdet 2.28.2 `dense_heads/{detr,deformable_detr}_head.py` and
`utils/transformer.py`.

Glossary: B batch, Q queries, C columns of the class logits, D embedding, S tokens of all levels, L levels.
"""

import functools
import math
from collections.abc import Sequence

import torch
from mmcv.cnn.bricks.transformer import TransformerLayerSequence
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.ops.attention import attend_tokens
from mmdeploy_ext.exporting.postprocess.sizes import hw
from mmdeploy_ext.families.parts.padding import Level, SinePositions, periods, tokens_of, waves
from mmdeploy_ext.families.parts.query_layers import (
    among_themselves,
    decode_queries,
    encode_tokens,
    for_every_image,
    run_layer,
)

inverse_sigmoid = mmdet_module('mmdet.models.utils.transformer').inverse_sigmoid

NAMES = ('logits', 'boxes')
SIDE = 0.05
"""Of a proposal of the finest level, share of the image; twice as much on each level after it."""
BORDER = 0.01
"""Proposals nearer to 0 or 1 than this are none."""
PROPOSAL_FEATURES, TEMPERATURE = 128, 10000
"""Of the encoding of proposals."""
HEIGHT_FIRST = [1, 0, 2, 3]
"""In which DINO encodes the numbers of a box: y before x, but width before height."""


def reference_points(levels: Sequence[Level], ratios: torch.Tensor) -> torch.Tensor:
    """Return (B, S, L, 2): x, y of every token in every map, shares of the map; `ratios` as of all levels."""
    centres = []
    for index, level in enumerate(levels):
        y, x = (
            (one.place + 0.5) / (ratios[:, index, axis, None] * one.cells)
            for axis, one in ((1, level.rows), (0, level.columns))
        )
        centres.append(level.grid(y, x))
    return torch.cat(centres, 1)[:, :, None] * ratios[:, None]


def encode_points(
    encoder: nn.Module,
    tokens: torch.Tensor,
    position: torch.Tensor,
    reference: torch.Tensor,
    look: functools.partial,
) -> torch.Tensor:
    """Run a `DetrTransformerEncoder` whose tokens (B, S, D) look at points of all maps; return as many.

    `position` is (B or 1, S, D); `reference` of `reference_points`; `look` is `attend_tokens` of these maps.
    The encoder of Co-DETR has a norm behind its layers that its forward, mmcv's own, leaves out.
    """

    def attend(attention: nn.Module, own: torch.Tensor) -> torch.Tensor:
        return look(attention, own + position, own, reference_points=reference)

    for layer in encoder.layers:
        tokens = run_layer(layer, tokens, dict(self_attn=attend))
    without_norm = encoder.post_norm is None or type(encoder).forward is TransformerLayerSequence.forward
    return tokens if without_norm else encoder.post_norm(tokens)


def query_head(model: nn.Module) -> nn.Module:
    """Return the head of queries; Co-DETR has lists of other heads in `bbox_head`, which train it."""
    return model.query_head if hasattr(model, 'query_head') else model.bbox_head


def content_size(model: nn.Module, image: torch.Tensor, img_shape: torch.Tensor) -> torch.Tensor:
    """Return height and width (B, 2) of what of the images a detector looks at, pixels.

    `img_shape` (B, 2) is that before padding, 0 means the input size. Co-DETR without `with_attn_mask` looks
    at the padding, too.
    """
    if not getattr(model, 'with_attn_mask', True):
        return torch.zeros_like(img_shape) + hw(image).to(img_shape)[None]
    return torch.where(img_shape > 0, img_shape, hw(image).to(img_shape)[None])


class QueryNetwork(nn.Module):
    """Detector and head behind flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.positions = SinePositions(self.head.positional_encoding)

    @property
    def head(self) -> nn.Module:
        """The head of queries."""
        return query_head(self.model)

    def forward(self, image: torch.Tensor, img_shape: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return class logits (B, Q, C) and boxes cxcywh (B, Q, 4) relative to the image without its padding.

        Of images (B, 3, H, W); `img_shape` (B, 2) is h, w before padding, 0 means the input size.
        """
        content = content_size(self.model, image, img_shape)
        maps = self.maps(image)
        found = self.queries(maps, [Level(content, image, one) for one in maps])
        return tuple(tap(name, tensor) for name, tensor in zip(NAMES, found, strict=True))

    def maps(self, image: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return what the transformer looks at, per level (B, D, h, w)."""
        return self.model.extract_feat(image)

    def queries(
        self, maps: Sequence[torch.Tensor], levels: Sequence[Level]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and boxes of all queries."""
        raise NotImplementedError


class DetrNetwork(QueryNetwork):
    """`DETRHead`: all tokens of one map look at each other, queries look at them."""

    def maps(self, image: torch.Tensor) -> Sequence[torch.Tensor]:
        """See `QueryNetwork`: the last map alone."""
        return [self.head.input_proj(super().maps(image)[-1])]

    def queries(
        self, maps: Sequence[torch.Tensor], levels: Sequence[Level]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head, (level,) = self.head, levels
        position = self.positions(level)
        padded = level.inside()[:, None, None] < 0.5
        memory = encode_tokens(head.transformer.encoder, tokens_of(maps), position, padded)
        places = head.query_embedding.weight[None]
        found = decode_queries(head.transformer.decoder, memory, position, places, padded)
        return head.fc_cls(found), head.fc_reg(head.activate(head.reg_ffn(found))).sigmoid()


class DeformableNetwork(QueryNetwork):
    """`DeformableDETRHead`: tokens and queries look at a few points of every map.

    Attributes:
        least_odds: of a box that a layer moves, before the last one.
        least_odds_of_results: of a box that the last layer moves.
    """

    least_odds = 1e-5
    least_odds_of_results = 1e-5

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.register_buffer('waves', periods(PROPOSAL_FEATURES, TEMPERATURE), persistent=False)

    def queries(
        self, maps: Sequence[torch.Tensor], levels: Sequence[Level]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = self.head
        keep = torch.cat([level.inside() for level in levels], 1)[..., None]
        ratios = torch.stack([level.ratios() for level in levels], 1)  # (B, L, 2)
        look = functools.partial(attend_tokens, keep=keep, sizes=[level.size for level in levels])
        transformer = head.transformer
        position = torch.cat(
            [self.positions(one) + transformer.level_embeds[index] for index, one in enumerate(levels)], 1
        )
        reference = reference_points(levels, ratios)
        memory = encode_points(transformer.encoder, tokens_of(maps), position, reference, look)
        if head.as_two_stage:
            query, places, reference = self._proposals(memory, levels, keep)
        else:
            query, places, reference = self._learned(memory.shape[0])
        return self._decode(query, places, reference, memory, ratios, look)

    def _learned(self, batch: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries, their places (B, Q, D) and reference points (B, Q, 2) of no image."""
        head = self.head
        places, query = head.query_embedding.weight[None].expand(batch, -1, -1).chunk(2, 2)
        return query, places, head.transformer.reference_points(places).sigmoid()

    def _best_tokens(self, memory: torch.Tensor, levels: Sequence[Level], keep: torch.Tensor) -> torch.Tensor:
        """Return the boxes (B, Q, 4) of the best tokens."""
        head = self.head
        transformer, last = head.transformer, head.transformer.decoder.num_layers
        proposals = []
        for index, level in enumerate(levels):
            y, x = ((one.place + 0.5) / one.count for one in (level.rows, level.columns))
            centre = level.grid(y, x)
            proposals.append(torch.cat([centre, torch.full_like(centre, SIDE * 2.0**index)], 2))
        boxes = torch.cat(proposals, 1)
        valid = (boxes.amin(2, True) > BORDER) & (boxes.amax(2, True) < 1 - BORDER) & (keep > 0.5)
        unact = torch.where(valid, torch.log(boxes / (1 - boxes)), torch.full_like(boxes, math.inf))
        rows = transformer.enc_output_norm(transformer.enc_output(memory * valid.to(memory.dtype)))
        scores = self.judged(head.cls_branches[last](rows))
        best = scores.topk(transformer.two_stage_num_proposals, 1)[1][..., None]
        chosen = rows.gather(1, best.expand(-1, -1, rows.shape[2]))
        logits = head.reg_branches[last](chosen) + unact.gather(1, best.expand(-1, -1, 4))
        return logits.sigmoid()

    def judged(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what tokens are chosen by, (B, S), of their class logits: those of the first class."""
        return logits[..., 0]

    def _proposals(
        self, memory: torch.Tensor, levels: Sequence[Level], keep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries, their places (B, Q, D) and reference boxes (B, Q, 4) of the best tokens."""
        transformer = self.head.transformer
        reference = self._best_tokens(memory, levels, keep)
        encoded = waves(reference * (2 * math.pi), self.waves).flatten(2)
        encoded = transformer.pos_trans_norm(transformer.pos_trans(encoded))
        places, query = encoded.chunk(2, 2)
        return query, places, reference

    def _decode(
        self,
        query: torch.Tensor,
        places: torch.Tensor,
        reference: torch.Tensor,
        memory: torch.Tensor,
        ratios: torch.Tensor,
        look: functools.partial,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = self.head
        layers = head.transformer.decoder.layers
        scale = ratios.repeat(1, 1, reference.shape[-1] // 2)[:, None]  # (B, 1, L, 2 or 4)
        for index, layer in enumerate(layers):
            points = reference[:, :, None] * scale
            placed = self.placed(places, points)

            def attend(
                attention: nn.Module,
                own: torch.Tensor,
                points: torch.Tensor = points,
                placed: torch.Tensor = placed,
            ) -> torch.Tensor:
                return look(attention, own + placed, memory, reference_points=points)

            attends = dict(self_attn=among_themselves(placed), cross_attn=attend)
            query = run_layer(layer, query, attends)
            if index < len(layers) - 1 and head.with_box_refine:
                reference = _moved(reference, head.reg_branches[index](query), self.least_odds)
                scale = ratios.repeat(1, 1, 2)[:, None]
        found = self.found(query)
        boxes = _moved(reference, head.reg_branches[len(layers) - 1](found), self.least_odds_of_results)
        return head.cls_branches[len(layers) - 1](found), boxes

    def placed(self, places: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Return the places (B, Q, D) of queries in a layer that looks at `points` (B, Q, L, 2 or 4)."""
        return places

    def found(self, query: torch.Tensor) -> torch.Tensor:
        """Return what the last layer's queries (B, Q, D) are read as."""
        return query


class DinoNetwork(DeformableNetwork):
    """`DINOHead`: queries are learned, their boxes are those of the best tokens, their places follow boxes.

    Source of the algorithm: mmdet 3.3.0 `detectors/dino.py`, `layers/transformer/dino_layers.py`.
    """

    least_odds = 1e-3

    def judged(self, logits: torch.Tensor) -> torch.Tensor:
        """See `DeformableNetwork`: by the best class."""
        return logits.amax(-1)

    def _proposals(
        self, memory: torch.Tensor, levels: Sequence[Level], keep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `DeformableNetwork`; there are no places before there are boxes."""
        query = for_every_image(self.learned_queries()[None], memory.shape[0])
        return query, query, self._best_tokens(memory, levels, keep)

    def learned_queries(self) -> torch.Tensor:
        """Return the queries (Q, D) of every image."""
        return self.head.query_embedding.weight

    def placed(self, places: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """See `DeformableNetwork`: they follow the boxes, as the finest map has them."""
        encoded = waves(points[:, :, 0] * (2 * math.pi), self.waves)[..., HEIGHT_FIRST, :].flatten(2)
        return self.head.transformer.decoder.ref_point_head(encoded)

    def found(self, query: torch.Tensor) -> torch.Tensor:
        return self.head.transformer.decoder.norm(query)


class CoDinoNetwork(DinoNetwork):
    """`CoDINOHead` of Co-DETR: DINO with queries in its transformer, and another bound of the last boxes.

    Source of the algorithm: Co-DETR 2665352, `projects/models/co_dino_head.py` and `transformer.py`.
    """

    least_odds_of_results = 1e-3

    def learned_queries(self) -> torch.Tensor:
        """Return the queries (Q, D) of the transformer."""
        return self.head.transformer.query_embed.weight


def _moved(reference: torch.Tensor, steps: torch.Tensor, eps: float) -> torch.Tensor:
    """Return boxes (B, Q, 4): points or boxes (B, Q, 2 or 4), moved by steps (B, Q, 4) as logits."""
    known = reference.shape[-1]
    placed = steps[..., :known] + inverse_sigmoid(reference, eps)
    return torch.cat([placed, steps[..., known:]], -1).sigmoid()


NETWORKS = dict(
    DETRHead=DetrNetwork,
    DeformableDETRHead=DeformableNetwork,
    DINOHead=DinoNetwork,
    CoDINOHead=CoDinoNetwork,
)
"""Class of the head, of mmdet, mmdet 3 or Co-DETR -> the module that runs its detector."""
