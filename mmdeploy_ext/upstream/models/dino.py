"""DINO: the parts of mmdet 3 that mmdet 2.28 lacks, around its Deformable DETR.

Source: mmdet 3.3.0 `detectors/dino.py`, `layers/transformer/dino_layers.py`; tests compare with results of
mmdet 3 (`tests/families/query/dino_golden.py`).
Glossary: B batch, Q queries, C columns of the class logits, D embedding, h, w cells of a map, S tokens of all
levels, L levels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmdet.models.builder import DETECTORS, HEADS
from mmdet.models.utils.builder import TRANSFORMER
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

dense_heads, detectors = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.models.detectors')
transformer = mmdet_module('mmdet.models.utils.transformer')

inverse_sigmoid = transformer.inverse_sigmoid
Y_FIRST, TEMPERATURE = [1, 0, 2, 3], 10000
"""Encoding order of a box cxcywh: y, x, width, height; bound of the sines' periods, from 1 on."""
LEAST_ODDS = 1e-3
"""Least distance from 0 and 1 of a box's numbers, before the last layer."""
NO_RESULT = -1e4
"""Logit of a query without results; its sigmoid is 0."""
TRAINS = 'DINO cannot train here; use mmdet 3'


@registered_if_named(DETECTORS)
class DINO(detectors.DeformableDETR):
    """Deformable DETR with a `DINOHead`."""


class BoxPlaces(nn.Module):
    """Two linear layers from encoded boxes to positional embeddings; `size` is D."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2 * size, size), nn.Linear(size, size)])

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        """Return positional embeddings (B, Q, D) of encoded boxes (B, Q, 2 * D)."""
        first, second = self.layers
        return second(first(encoded).relu())


@registered_if_named(TRANSFORMER_LAYER_SEQUENCE)
class DinoTransformerDecoder(transformer.DeformableDetrTransformerDecoder):
    """The layers of Deformable DETR with positional embeddings of the queries' boxes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ref_point_head = BoxPlaces(self.embed_dims)
        self.norm = nn.LayerNorm(self.embed_dims)

    def forward(
        self,
        query: torch.Tensor,
        *args: Any,
        reference_points: torch.Tensor,
        valid_ratios: torch.Tensor,
        reg_branches: nn.ModuleList,
        cls_branches: nn.ModuleList,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the last queries (Q, B, D), normalised, their boxes (B, Q, 4), and `seen`.

        `query` is (Q, B, D), `reference_points` boxes cxcywh (B, Q, 4) relative to the image without padding,
        `valid_ratios` (B, L, 2) shares of each map's width and height in the image.
        """
        scale, seen = torch.cat([valid_ratios, valid_ratios], -1)[:, None], None
        for index, layer in enumerate(self.layers):
            boxes = reference_points[:, :, None] * scale
            places = self.ref_point_head(self.encoded(boxes[:, :, 0])).transpose(0, 1)
            masks = self.attention_masks(seen)
            query = layer(query, *args, query_pos=places, reference_points=boxes, attn_masks=masks, **kwargs)
            if index < len(self.layers) - 1:
                rows = query.transpose(0, 1)
                steps = reg_branches[index](rows)
                reference_points = (steps + inverse_sigmoid(reference_points, eps=LEAST_ODDS)).sigmoid()
                seen = self.seen(seen, cls_branches[index](rows), reference_points)
        return self.norm(query), reference_points, seen

    def seen(
        self, seen: torch.Tensor | None, logits: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor | None:
        """Return (B, Q, Q) bool, which query looks at which in the next layer; None: at all.

        Those in row 0 give results.
        """
        return None

    def attention_masks(self, seen: torch.Tensor | None) -> list[torch.Tensor | None] | None:
        """Return the masks of a layer's attentions."""
        return None

    def encoded(self, boxes: torch.Tensor) -> torch.Tensor:
        """Return the encoding (B, Q, 2 * D) of boxes cxcywh (B, Q, 4)."""
        features = self.embed_dims // 2
        exponents = torch.arange(0, features, 2, dtype=boxes.dtype, device=boxes.device) / features
        angles = boxes[..., Y_FIRST, None] * (2 * math.pi) / TEMPERATURE**exponents
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)


@registered_if_named(TRANSFORMER)
class DinoTransformer(transformer.DeformableDetrTransformer):
    """The transformer of a two-stage Deformable DETR with learned queries."""

    def init_layers(self) -> None:
        super().init_layers()
        del self.pos_trans, self.pos_trans_norm

    def forward(
        self,
        mlvl_feats: Sequence[torch.Tensor],
        mlvl_masks: Sequence[torch.Tensor],
        query_embed: nn.Embedding | None,
        mlvl_pos_embeds: Sequence[torch.Tensor],
        reg_branches: nn.ModuleList,
        cls_branches: nn.ModuleList,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the last queries (Q, B, D), normalised, their boxes (B, Q, 4), and `seen`.

        `mlvl_feats` are (B, D, h, w), `mlvl_masks` (B, h, w) bool, True in padding, `query_embed` of (Q, D),
        `mlvl_pos_embeds` (B, D, h, w); branches are of each layer, then of the tokens.
        """
        device = mlvl_feats[0].device
        shapes = torch.as_tensor([features.shape[-2:] for features in mlvl_feats], device=device)
        ratios = torch.stack([self.get_valid_ratio(mask) for mask in mlvl_masks], 1)
        positions = [
            position + self.level_embeds[level][None, :, None, None]
            for level, position in enumerate(mlvl_pos_embeds)
        ]
        tokens, places = (
            torch.cat([level.flatten(2) for level in maps], 2).permute(2, 0, 1)
            for maps in (mlvl_feats, positions)
        )
        padded = torch.cat([mask.flatten(1) for mask in mlvl_masks], 1)
        begins = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        common = dict(spatial_shapes=shapes, level_start_index=begins, valid_ratios=ratios, **kwargs)
        memory = self.encoder(
            query=tokens,
            key=None,
            value=None,
            query_pos=places,
            query_key_padding_mask=padded,
            reference_points=self.get_reference_points(shapes, ratios, device=device),
            **common,
        )
        tokens, last = memory.transpose(0, 1), self.decoder.num_layers
        rows, proposals = self.gen_encoder_output_proposals(tokens, padded, shapes)
        moved, logits = reg_branches[last](rows) + proposals, cls_branches[last](rows)
        query, boxes = self.first_queries(tokens, logits, moved, query_embed)
        return self.decoder(
            query.transpose(0, 1),
            key=None,
            value=memory,
            key_padding_mask=padded,
            reference_points=boxes,
            reg_branches=reg_branches,
            cls_branches=cls_branches,
            **common,
        )

    def first_queries(
        self,
        tokens: torch.Tensor,
        logits: torch.Tensor,
        moved: torch.Tensor,
        query_embed: nn.Embedding | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries (B, Q, D) and boxes (B, Q, 4) cxcywh, those of the best tokens, best first.

        `tokens` are (B, S, D), `logits` (B, S, C), `moved` (B, S, 4) boxes before the sigmoid.
        """
        best = logits.amax(-1).topk(self.two_stage_num_proposals, 1)[1]
        boxes = moved.gather(1, best[..., None].expand(-1, -1, 4)).sigmoid()
        return query_embed.weight[None].expand(len(tokens), -1, -1), boxes


@registered_if_named(HEADS)
class DINOHead(dense_heads.DeformableDETRHead):
    """The branches of a two-stage Deformable DETR with box refinement, and its queries."""

    def __init__(self, *args: Any, transformer: Mapping[str, Any], **kwargs: Any) -> None:
        for key in ('as_two_stage', 'with_box_refine'):
            if not kwargs.get(key, False):
                raise ConfigError(f'model.bbox_head.{key}=False: expected True, as in DINO')
        super().__init__(*args, transformer=dict(transformer), **kwargs)
        boxes = getattr(self.transformer, 'two_stage_num_proposals', self.num_query)
        if boxes != self.num_query:
            raise ConfigError(
                f'model.bbox_head.transformer.two_stage_num_proposals={boxes}: expected '
                f'num_query={self.num_query}, one box per query'
            )
        self.query_embedding = nn.Embedding(self.num_query, self.embed_dims)

    def forward(
        self, mlvl_feats: Sequence[torch.Tensor], img_metas: Sequence[Mapping[str, Any]]
    ) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        """Return class logits (1, B, Q, C) and boxes cxcywh (1, B, Q, 4) of the last layer, and None twice.

        Features are (B, D, h, w); metas have `batch_input_shape` and `img_shape`.
        """
        masks = self.masks(mlvl_feats, img_metas)
        query, reference, seen = self.transformer(
            mlvl_feats,
            masks,
            self.query_embedding,
            [self.positional_encoding(mask) for mask in masks],
            reg_branches=self.reg_branches,
            cls_branches=self.cls_branches,
        )
        query, last = query.transpose(0, 1), self.transformer.decoder.num_layers - 1
        boxes = (self.reg_branches[last](query) + inverse_sigmoid(reference)).sigmoid()
        logits = self.cls_branches[last](query)
        if seen is not None:
            logits = torch.where(seen[:, 0, :, None], logits, NO_RESULT)
        return logits[None], boxes[None], None, None

    def masks(
        self, mlvl_feats: Sequence[torch.Tensor], img_metas: Sequence[Mapping[str, Any]]
    ) -> list[torch.Tensor]:
        """Return (B, h, w) bool for each map, True in padding."""
        outside = mlvl_feats[0].new_ones((len(img_metas), *img_metas[0]['batch_input_shape']))
        for image, meta in enumerate(img_metas):
            height, width = meta['img_shape'][:2]
            outside[image, :height, :width] = 0
        return [F.interpolate(outside[None], size=features.shape[-2:])[0] > 0.5 for features in mlvl_feats]

    def loss(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(TRAINS)
