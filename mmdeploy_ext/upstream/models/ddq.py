"""DDQ DETR: a DINO whose queries are distinct, by NMS of the tokens and after each layer.

Source: mmdet 3.3.0 `detectors/ddq_detr.py`, `layers/transformer/ddq_detr_layers.py`,
`dense_heads/ddq_detr_head.py`; tests compare with results of mmdet 3 (`tests/families/query/dino_golden.py`).
Glossary: B batch, Q queries, C columns of the class logits, D embedding, S tokens of all levels.
"""

import copy
from typing import Any

import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmdet.models.builder import DETECTORS, HEADS
from mmdet.models.utils.builder import TRANSFORMER
from torch import nn

from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.conditional_detr import cxcywh_to_xyxy
from mmdeploy_ext.upstream.models.dino import DINO, DINOHead, DinoTransformer, DinoTransformerDecoder
from mmdeploy_ext.upstream.operators.nms import NO_CANDIDATE, batched_keep


@registered_if_named(DETECTORS)
class DDQDETR(DINO):
    """DINO with a `DDQDETRHead`."""


@registered_if_named(TRANSFORMER_LAYER_SEQUENCE)
class DDQTransformerDecoder(DinoTransformerDecoder):
    """The layers of DINO; in each, queries look at distinct ones; `iou_threshold` is of the NMS."""

    def __init__(self, *args: Any, iou_threshold: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.iou_threshold = iou_threshold

    def seen(self, seen: torch.Tensor | None, logits: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Return (B, Q, Q) bool, True where one of a pair is distinct by NMS.

        `logits` (B, Q, C), `boxes` (B, Q, 4) cxcywh. As in mmdet 3, those that query 0 sees take part: all,
        if it is distinct itself.
        """
        scores = logits.amax(-1).sigmoid()
        if seen is not None:
            scores = torch.where(seen[:, 0], scores, NO_CANDIDATE)
        keep = batched_keep(
            cxcywh_to_xyxy(boxes), scores, scores[:, None], self.iou_threshold, scores.shape[1]
        )
        return keep[:, :, None] | keep[:, None]

    def attention_masks(self, seen: torch.Tensor | None) -> list[torch.Tensor | None] | None:
        if seen is None:
            return None
        heads = self.layers[0].attentions[0].num_heads
        return [~seen.repeat_interleave(heads, 0), None]


@registered_if_named(TRANSFORMER)
class DDQTransformer(DinoTransformer):
    """The transformer of DINO with tokens as queries."""

    def init_layers(self) -> None:
        super().init_layers()
        self.query_map = nn.Linear(self.embed_dims, self.embed_dims)

    def first_queries(
        self, tokens: torch.Tensor, logits: torch.Tensor, moved: torch.Tensor, query_embed: None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries (B, Q, D), boxes (B, Q, 4) of the best distinct tokens; missing ones are 0, 0.5.

        Tokens in padding or at the border are equal in score and box; only the first of them takes part.
        """
        scores, count = logits.amax(-1).sigmoid(), self.two_stage_num_proposals
        outside = moved[..., 0].isinf()
        scores = torch.where(outside & (outside.to(torch.int64).cumsum(1) > 1), NO_CANDIDATE, scores)
        boxes = cxcywh_to_xyxy(moved.sigmoid())
        keep = batched_keep(boxes, scores, scores[:, None], self.decoder.iou_threshold, count)
        best, rows = torch.where(keep, scores, NO_CANDIDATE).topk(count, 1)
        present, rows = (best > NO_CANDIDATE)[..., None], rows[..., None]
        query = self.query_map(tokens.gather(1, rows.expand(-1, -1, tokens.shape[2])))
        moved = moved.gather(1, rows.expand(-1, -1, 4))
        return torch.where(present, query, 0.0), torch.where(present, moved, 0.0).sigmoid()


@registered_if_named(HEADS)
class DDQDETRHead(DINOHead):
    """The branches of DINO, and a pair for a training's dense queries."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.query_embedding = None

    def _init_layers(self) -> None:
        super()._init_layers()
        for branches in (self.cls_branches, self.reg_branches):
            branches.append(copy.deepcopy(branches[-1]))
