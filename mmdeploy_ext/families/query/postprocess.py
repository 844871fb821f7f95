"""Logits and relative boxes of queries to detections; Co-DETR suppresses, too.

Source: mmdet 2.28.2 `dense_heads/detr_head.py` and Co-DETR 2665352
`projects/models/co_deformable_detr_head.py` (`_get_bboxes_single`).
Glossary: B batch, Q queries, C classes, n detections.
"""

import functools

import torch
from torch import nn

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.suppression import NO_CANDIDATE, Suppression, nms_config
from mmdeploy_ext.families.common.query_networks import content_size, query_head
from mmdeploy_ext.spec.nms import NmsConfig
from mmdeploy_ext.upstream.models.conditional_detr import cxcywh_to_xyxy

FULL_NAMES = ('dets', 'labels')


def max_per_img(head: nn.Module) -> int:
    return head.test_cfg.get('max_per_img', head.num_query)


def pairs(head: nn.Module) -> int:
    queries = getattr(head.transformer, 'two_stage_num_proposals', head.num_query)
    queries = queries if getattr(head, 'as_two_stage', False) else head.num_query
    queries = getattr(head, 'num_query_one2one', queries)  # those of H-DETR that do not only train
    return int(queries) * (int(head.num_classes) if head.loss_cls.use_sigmoid else 1)


def best_pairs(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scores, classes and queries (B, n) of the `count` best of scores (B, Q, C), best first."""
    num_classes = scores.shape[2]
    scores, index = scores.flatten(1).topk(count, 1)
    return scores, index % num_classes, torch.div(index, num_classes, rounding_mode='floor')


class QueryFullForm(nn.Module):
    """The form `full`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        head = query_head(model)
        self.count, self.sigmoid = max_per_img(head), bool(head.loss_cls.use_sigmoid)
        self.sized = functools.partial(content_size, model)
        self.suppress = None
        if hasattr(model, 'query_head'):
            config = suppression_of(head)
            self.score_thr = float(head.test_cfg.get('score_thr', 0))
            self.suppress = Suppression(
                config.iou_threshold if config else 1.0,  # of no use without suppression
                self.count,
                class_agnostic=bool(config and config.class_agnostic),
                suppresses=config is not None,
                trimmed=False,
                soft=config if config and config.method else None,
            )
            if config:
                self.count = int(head.num_query)

    def forward(
        self,
        image: torch.Tensor,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
        logits: torch.Tensor,
        boxes: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return dets (B, n, 5) xyxy, clipped, and score, and labels (B, n), best first.

        `img_shape` (B, 2) is h, w before padding, 0 means the input size; `scale_factor` (B, 4) `w h w h`,
        input / original; `logits` (B, Q, C), or C + 1 with background; `boxes` (B, Q, 4) cxcywh relative to
        `content_size`.
        """
        if self.sigmoid:
            scores, labels, query = best_pairs(logits.sigmoid(), self.count)
        else:
            scores, classes = logits.softmax(2)[..., :-1].max(2)
            scores, query = scores.topk(self.count, 1)
            labels = classes.gather(1, query)
        size_whwh = self.sized(image, img_shape).flip(1).repeat(1, 2)[:, None]
        best = cxcywh_to_xyxy(boxes.gather(1, query[..., None].expand(-1, -1, 4)))
        best = torch.minimum((best * size_whwh).clamp(min=0), size_whwh) / scale_factor[:, None]
        if self.suppress is None:
            dets = torch.cat([best, scores[..., None]], 2)
        else:
            candidates = scores > self.score_thr
            scores = torch.where(candidates, scores, torch.full_like(scores, NO_CANDIDATE))
            dets, labels = self.suppress(best, scores, labels, candidates)
        return tap('dets', dets), tap('labels', labels)


def suppression_of(head: nn.Module) -> NmsConfig | None:
    if not head.test_cfg.get('nms'):
        return None
    test_cfg = dict(head.test_cfg, max_per_img=max_per_img(head))
    return nms_config(test_cfg, soft=True, key='model.test_cfg.0.nms')  # a list, of Co-DETR
