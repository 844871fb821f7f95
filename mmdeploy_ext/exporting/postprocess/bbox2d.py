"""Post-processing of dense 2D heads, equal to mmdet 2.28.2's `BaseDenseHead.get_bboxes`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdeploy_ext.exporting.postprocess.suppression import (
    NO_CANDIDATE,
    Suppression,
    clip_to,
    gather_rows,
    limit,
)
from mmdeploy_ext.runtime.box_coders import VOTE_SPREAD, VOTES_ABOVE
from mmdeploy_ext.runtime.dense_facts import DenseFacts
from mmdeploy_ext.runtime.geometry import ious

Candidates = tuple[Tensor | None, ...]
"""Boxes, scores, factors and labels of the candidates of a level, see `DenseBoxPostprocess._choose`."""


class DenseBoxPostprocess(nn.Module):
    """Score threshold, top-k per level, clipping, rescaling, class-aware NMS, order by descending score.

    By default the threshold applies to class scores before the score factor, top-k to (prior, class) pairs of
    a level; boxes are clipped to `img_shape` and divided by `scale_factor` before NMS.
    """

    def __init__(self, facts: DenseFacts, cap: int = 0, plugin: bool = False) -> None:
        super().__init__()
        self.facts, self.cap, self.plugin = facts, cap, plugin

    def forward(
        self,
        mlvl_bboxes: Sequence[Tensor],
        mlvl_scores: Sequence[Tensor],
        mlvl_factors: Sequence[Tensor | None],
        clip_hw: Tensor,
        scale_factor: Tensor,
        border: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Turn decoded levels into detections.

        Args:
            mlvl_bboxes: per level (B, A, 4) float32 xyxy, pixels, not clipped.
            mlvl_scores: per level (B, A, C) class scores in 0..1; -1: no candidate.
            mlvl_factors: per level (B, A) score factors in 0..1, or None in all levels.
            clip_hw: (B or 1, 2) float32 height and width in pixels, border included.
            scale_factor: (B or 1, 4) float32 `w h w h`, input / original; boxes are divided by it.
            border: (B or 1, 2) float32 padding above and left in pixels, subtracted after the clipping.

        Returns:
            dets (B, n, 5) float32 x1 y1 x2 y2 score, descending, and labels (B, n) int64; n is the largest
                number of results before voting (with a cap: a constant); padding is zero with label -1. With
                a cap also (B,) int64, the number of candidates before the cap.
        """
        mlvl = zip(mlvl_bboxes, mlvl_scores, mlvl_factors, strict=True)
        levels = [self._choose(*level) for level in mlvl]
        bboxes, class_scores, factors, labels = (
            None if parts[0] is None else torch.cat(parts, dim=1) for parts in zip(*levels, strict=True)
        )
        judged = self._ranks(class_scores, factors) if self.facts.head.judged == 'product' else class_scores
        threshold = self.facts.score_thr
        candidates = judged >= threshold if self.facts.head.inclusive else judged > threshold
        if self.facts.head.conf_thr > 0:
            confident = factors >= self.facts.head.conf_thr
            candidates = candidates & (confident[..., None] if candidates.dim() == 3 else confident)
        if self.facts.clip_border:
            bboxes = clip_to(bboxes, clip_hw, self.facts.head.clip_inset)
        if border is not None:
            bboxes = bboxes - torch.cat([border[:, 1:], border[:, :1]], dim=1).repeat(1, 2)[:, None]
        bboxes = bboxes / scale_factor[:, None]
        scores = self._ranks(class_scores, factors)
        voters = bboxes, scores
        if self.facts.head.choose == 'priors':
            # a row per (prior, class) pair
            classes = scores.shape[2]
            labels = torch.arange(classes, device=scores.device)
            labels = labels.expand(scores.shape[0], scores.shape[1], -1)
            bboxes = bboxes[:, :, None].expand(-1, -1, classes, -1).flatten(1, 2)
            scores, labels, candidates = (rows.flatten(1) for rows in (scores, labels, candidates))
        like = scores if factors is None or self.facts.head.choose == 'priors' else factors
        scores = torch.where(candidates, scores, torch.full_like(like, NO_CANDIDATE))
        suppress = Suppression(
            self.facts.iou_threshold,
            self.facts.max_per_img,
            self.facts.class_agnostic,
            self.facts.head.suppresses,
            self.facts.head.inverted,
            self.cap,
            plugin_classes=self.facts.num_classes if self.plugin else 0,
        )
        dets, labels, *count = suppress(bboxes, scores, labels, candidates)
        if self.facts.head.votes:
            dets, labels = self._voted(dets, labels, *voters)
        return dets, labels, *count

    def _ranks(self, scores: Tensor, factors: Tensor | None) -> Tensor:
        if factors is None:
            return scores
        product = scores * (factors[..., None] if scores.dim() > factors.dim() else factors)
        return product.sqrt() if self.facts.head.root else product

    def _choose(self, bboxes: Tensor, scores: Tensor, factors: Tensor | None) -> Candidates:
        if self.facts.head.choose == 'best':
            best, labels = scores.max(dim=2)
            return bboxes, best, factors, labels
        nms_pre = self.facts.nms_pre
        if self.facts.head.choose == 'priors':
            if nms_pre > 0:
                best = self._ranks(scores, factors).amax(dim=2)
                _, rows = best.topk(limit(nms_pre, best.shape[1]), dim=1)
                bboxes, scores = gather_rows(bboxes, rows), gather_rows(scores, rows)
                factors = None if factors is None else factors.gather(1, rows)
            return bboxes, scores, factors, None
        num_classes = scores.shape[2]
        flat = scores.flatten(1)
        if nms_pre > 0 and self.facts.head.choose == 'pairs':
            values, pairs = flat.topk(limit(nms_pre, flat.shape[1]), dim=1)
        else:
            values, pairs = flat, torch.arange(flat.shape[1], device=flat.device).expand(flat.shape[0], -1)
        anchors = torch.div(pairs, num_classes, rounding_mode='floor')
        labels = pairs - anchors * num_classes
        bboxes = gather_rows(bboxes, anchors)
        return bboxes, values, None if factors is None else factors.gather(1, anchors), labels

    def _voted(self, dets: Tensor, labels: Tensor, bboxes: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
        overlap = ious(torch, dets[..., :4], bboxes)
        rows = labels.clamp(min=0)[:, None].expand(-1, ranks.shape[1], -1)
        ranks = ranks.gather(2, rows).transpose(1, 2)
        weights = torch.exp(-((1 - overlap) ** 2) / VOTE_SPREAD) * ranks
        votes = (overlap > VOTES_ABOVE) & (ranks > self.facts.score_thr) & (labels >= 0)[..., None]
        weights = torch.where(votes, weights, torch.zeros_like(weights))
        total = weights.sum(dim=2, keepdim=True)
        present = total > 0
        voted = torch.cat([weights @ bboxes / total, dets[..., 4:]], dim=2)
        voted = torch.where(present, voted, torch.zeros_like(voted))
        labels = torch.where(present[..., 0], labels, torch.full_like(labels, -1))
        _, order = voted[..., 4].topk(voted.shape[1], dim=1)
        return gather_rows(voted, order), labels.gather(1, order)
