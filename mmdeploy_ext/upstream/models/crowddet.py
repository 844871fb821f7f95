"""CrowdDet's box head, which mmdet 2.28 lacks: two predictions for each region, and their suppression.

Source: mmdet 3.3.0 `roi_heads/bbox_heads/multi_instance_bbox_head.py`; https://arxiv.org/abs/2003.09163.
Glossary: R regions, C columns of features.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.core import bbox_overlaps
from mmdet.models.builder import HEADS
from torch import nn

from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

bbox_heads = mmdet_module('mmdet.models.roi_heads.bbox_heads')

PAIR = 2
REPEATS = 4
"""Of a first prediction beside the features that refine it."""


def linear_pair(inputs: int, outputs: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(inputs, outputs) for _ in range(PAIR))


@registered_if_named(HEADS)
class MultiInstanceBBoxHead(bbox_heads.BBoxHead):
    """A box head for one class, with the background first in the logits."""

    def __init__(
        self, num_shared_fcs: int = 2, fc_out_channels: int = 1024, with_refine: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        inputs, size = self.in_channels * self.roi_feat_area, fc_out_channels
        self.shared_fcs = nn.ModuleList(
            nn.Linear(size if layer else inputs, size) for layer in range(num_shared_fcs)
        )
        self.fc_cls, self.fc_reg, self.with_refine = linear_pair(size, 2), linear_pair(size, 4), with_refine
        if with_refine:
            self.shared_fcs_ref = nn.Linear(size + (4 + 1) * REPEATS, size)
            self.fc_cls_ref, self.fc_reg_ref = linear_pair(size, 2), linear_pair(size, 4)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (R, 2 * 2) and deltas (R, 2 * 4) of regions (R, channels, h, w)."""
        rows = features.flatten(1)
        for layer in self.shared_fcs:
            rows = layer(rows).relu()
        logits, deltas = [layer(rows) for layer in self.fc_cls], [layer(rows) for layer in self.fc_reg]
        if self.with_refine:
            found = [
                torch.cat([delta, logit.softmax(-1)[:, 1:]], 1)
                for logit, delta in zip(logits, deltas, strict=True)
            ]
            refined = [self.shared_fcs_ref(torch.cat([rows, *[one] * REPEATS], 1)).relu() for one in found]
            logits, deltas = (
                [layer(one) for layer, one in zip(layers, refined, strict=True)]
                for layers in (self.fc_cls_ref, self.fc_reg_ref)
            )
        return torch.cat(logits, 1), torch.cat(deltas, 1)

    @staticmethod
    def scores(logits: torch.Tensor) -> torch.Tensor:
        """Return the scores (..., 2) of a pair's logits (..., 2 * 2)."""
        return logits.unflatten(-1, (PAIR, -1)).softmax(-1)[..., 1]

    def get_bboxes(
        self,
        rois: torch.Tensor,
        cls_score: torch.Tensor,
        bbox_pred: torch.Tensor,
        img_shape: Sequence[int],
        scale_factor: Any,
        rescale: bool = False,
        cfg: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return boxes with scores (n, 5) and labels (n,) of regions (R, 5), region by region."""
        regions = rois[:, 1:].repeat_interleave(PAIR, 0)
        boxes = self.bbox_coder.decode(regions, bbox_pred.reshape(-1, 4), max_shape=img_shape)
        if rescale:
            boxes = boxes / boxes.new_tensor(scale_factor)
        scores = self.scores(cls_score).flatten()
        kept = set_nms(boxes, scores, cfg.score_thr, cfg.nms['iou_threshold'])[: cfg.max_per_img]
        dets = torch.cat([boxes[kept], scores[kept, None]], 1)
        return dets, torch.zeros_like(kept)


def set_nms(
    boxes: torch.Tensor, scores: torch.Tensor, score_thr: float, iou_threshold: float
) -> torch.Tensor:
    """Return the kept indices (n,) in ascending order; boxes of a pair do not suppress each other."""
    kept, left = [], scores.argsort(descending=True, stable=True)
    left = left[scores[left] > score_thr]
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        apart = bbox_overlaps(boxes[best, None], boxes[left])[0] <= iou_threshold
        left = left[apart | (left // PAIR == best // PAIR)]
    return left.new_tensor(sorted(kept))
