"""From logits and relative boxes of queries to detections: the best pairs, of Co-DETR suppressed, too.

Source of the algorithm: mmdet 2.28.2 `dense_heads/detr_head.py` and Co-DETR 2665352
`projects/models/co_deformable_detr_head.py` (`_get_bboxes_single`).

Glossary: B batch, Q queries, C classes, n detections.
"""

import functools

import torch
from torch import nn

from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.postprocess.suppression import (
    NO_CANDIDATE,
    NmsConfig,
    SoftNmsConfig,
    Suppression,
    nms_config,
)
from mmdeploy_ext.families.limits import NO_SUPPRESSION
from mmdeploy_ext.families.parts.query_networks import content_size, query_head
from mmdeploy_ext.models.rtdetr.boxes import cxcywh_to_xyxy

FULL_NAMES = ('dets', 'labels')


def max_per_img(head: nn.Module) -> int:
    """Return how many results a head gives."""
    return int(head.test_cfg.get('max_per_img', head.num_query))


def pairs(head: nn.Module) -> int:
    """Return how many results a head can give: queries, or pairs of query and class."""
    queries = getattr(head.transformer, 'two_stage_num_proposals', head.num_query)
    queries = queries if getattr(head, 'as_two_stage', False) else head.num_query
    return int(queries) * (int(head.num_classes) if head.loss_cls.use_sigmoid else 1)


def best_pairs(scores: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scores, classes and queries (B, n) of the best of scores (B, Q, C), in descending order."""
    classes = scores.shape[2]
    scores, index = scores.flatten(1).topk(most, 1)
    return scores, index % classes, torch.div(index, classes, rounding_mode='floor')


class FullForm(nn.Module):
    """What the `full` form adds to the network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        head = query_head(model)
        self.most, self.sigmoid = max_per_img(head), bool(head.loss_cls.use_sigmoid)
        self.sized = functools.partial(content_size, model)

    def forward(
        self,
        image: torch.Tensor,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
        logits: torch.Tensor,
        boxes: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return dets (B, n, 5) and labels (B, n).

        Of logits (B, Q, C), or with a column more for the background, and boxes (B, Q, 4) cxcywh relative to
        the image, without its padding; for the other inputs see `dense.forms.FullForm`.
        """
        placed, scores, labels = self.best_boxes(image, img_shape, scale_factor, logits, boxes)
        return tap('dets', torch.cat([placed, scores[..., None]], 2)), tap('labels', labels)

    def best_boxes(
        self,
        image: torch.Tensor,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
        logits: torch.Tensor,
        boxes: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return boxes (B, n, 4) xyxy, divided by the scale factor, scores and classes (B, n) of the best."""
        scores, labels, query = self._best(logits)
        whole = self.sized(image, img_shape).flip(1).repeat(1, 2)[:, None]
        chosen = cxcywh_to_xyxy(boxes.gather(1, query[..., None].expand(-1, -1, 4)))
        placed = torch.minimum((chosen * whole).clamp(min=0), whole) / scale_factor[:, None]
        return placed, scores, labels

    def _best(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return scores, classes and queries (B, n) of the best results, in descending order."""
        if self.sigmoid:
            return best_pairs(logits.sigmoid(), self.most)
        every, kinds = logits.softmax(2)[..., :-1].max(2)
        scores, query = every.topk(self.most, 1)
        return scores, kinds.gather(1, query), query


class SuppressedForm(FullForm):
    """What Co-DETR adds to the network: as many of the best pairs as there are queries, suppressed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        head = query_head(model)
        self.config = suppression_of(head)
        self.most = int(head.num_query) if self.config else max_per_img(head)
        self.score_thr = float(head.test_cfg.get('score_thr', 0))
        self.suppress = Suppression(
            self.config.iou_threshold if self.config else NO_SUPPRESSION,
            max_per_img(head),
            class_agnostic=bool(self.config and self.config.class_agnostic),
            suppresses=self.config is not None,
            trimmed=False,
            soft=self.config if isinstance(self.config, SoftNmsConfig) else None,
        )

    def forward(
        self,
        image: torch.Tensor,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
        logits: torch.Tensor,
        boxes: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return dets (B, n, 5) and labels (B, n); rows behind the results are zero with label -1."""
        placed, scores, labels = self.best_boxes(image, img_shape, scale_factor, logits, boxes)
        candidates = scores > self.score_thr
        scores = torch.where(candidates, scores, torch.full_like(scores, NO_CANDIDATE))
        dets, labels = self.suppress(placed, scores, labels, candidates)
        return tap('dets', dets), tap('labels', labels)


def suppression_of(head: nn.Module) -> NmsConfig | None:
    """Return what suppresses results, None where nothing does; ConfigError names what ONNX has no form of."""
    if not head.test_cfg.get('nms'):
        return None
    return nms_config(dict(head.test_cfg, max_per_img=max_per_img(head)), soft=True)


def full_form(model: nn.Module) -> FullForm:
    """Return what the `full` form of a detector adds to its network."""
    return (SuppressedForm if hasattr(model, 'query_head') else FullForm)(model)
