"""From the outputs of a region proposal network to boxes: equal to mmdet 2.28.2's `RPNHead.get_bboxes`.

Glossary: B batch, A anchors of a level, K proposals kept per image at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from mmdet.models import dense_heads as heads
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.nms_config import nms_config, number
from mmdeploy_ext.exporting.postprocess.sizes import limit
from mmdeploy_ext.exporting.postprocess.suppress import NO_CANDIDATE, Suppression, clip_to, gather_rows
from mmdeploy_ext.runtime.dense.coders import boxes_of, scores_of
from projects.mmdet_plugin.dense.forms import rows_of, same_priors
from projects.mmdet_plugin.dense.plain import chosen_coder, clips, plain_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.exporting.postprocess.nms_config import NmsConfig

METHODS = ('get_bboxes', '_get_bboxes_single', '_bbox_post_process')
"""Methods of upstream that the graph repeats."""


def check_head(head: nn.Module) -> None:
    """Refuse a head of proposals that the graph does not repeat.

    Raises:
        ConfigError: names the class, or the method.
    """
    if not isinstance(head, heads.RPNHead):
        raise ConfigError(f'model.rpn_head.type={type(head).__name__}: proposals export from RPNHead')
    for name in METHODS:
        if getattr(type(head), name) is not getattr(heads.RPNHead, name):
            raise ConfigError(
                f'{type(head).__name__} has a {name}() of its own, which the graphs do not repeat; expected '
                f'that of RPNHead'
            )
    thresholds(head)
    smallest_side(head)
    facts_of(head)


def thresholds(head: nn.Module) -> NmsConfig:
    """Return what `test_cfg.rpn` decides; scores have no threshold there."""
    return nms_config(dict(head.test_cfg, score_thr=0.0))


def smallest_side(head: nn.Module) -> float:
    """Return `min_bbox_size`, pixels: sides have to be longer; below 0 any will do."""
    return float(number('rpn.min_bbox_size', head.test_cfg.get('min_bbox_size', -1), float))


def facts_of(head: nn.Module) -> dict[str, Any]:
    """Return the coder and what the outputs are, as `runtime/dense` reads them."""
    coder = chosen_coder(head, 'model.rpn_head')
    return dict(coder=coder, head=plain_head(head).to_json(), clip=bool(clips(head)))


def needed(count: torch.Tensor, labels: torch.Tensor, cap: int, most: int) -> torch.Tensor:
    """Return how many of `count` (B,) candidates a suppression had to look at, of the best `cap`.

    Args:
        count: (B,) int64.
        labels: (B, n) of its results; -1 where a row is padding.
        cap: that it looked at.
        most: results at most; a list of so many lacks none. None is full where that is more than the cap.
    """
    if not 0 < most <= cap:
        return count
    return torch.where((labels >= 0).sum(dim=1) >= most, count.clamp(max=cap), count)


class Proposals(nn.Module):
    """Per level the `nms_pre` best anchors, decoded and clipped, those that are large enough; suppression."""

    def __init__(self, head: nn.Module, trimmed: bool = False, cap: int = 0) -> None:
        """Keep what makes the anchors, and the settings; none of the head's layers is used.

        Args:
            head: of mmdet.
            trimmed: rows that no image of the batch has are cut off.
            cap: see `Suppression`.
        """
        super().__init__()
        self.trimmed, self.cap = trimmed, cap
        self.config, self.smallest = thresholds(head), smallest_side(head)
        self.priors, self.facts = same_priors(head.prior_generator), facts_of(head)

    def forward(self, maps: Sequence[torch.Tensor], clip_hw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Choose proposals.

        Args:
            maps: class logits of every level (B, a, h, w), then deltas of every level (B, a*4, h, w).
            clip_hw: (B, 2) float32 height and width that boxes are clipped to.

        Returns:
            dets (B, K, 5) xyxy and score, the best first, and levels (B, K) int64; rows that an image does
            not have are zero with level -1. With a cap also (B,) int64: how many boxes had to enter the
            suppression: all where there are fewer proposals than there may be, else no more than the cap.
        """
        count = len(maps) // 2
        levels = [
            self._level(level, *pair)
            for level, pair in enumerate(zip(maps[:count], maps[count:], strict=True))
        ]
        boxes, scores, ids = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        if self.facts['clip']:
            boxes = clip_to(boxes, clip_hw, self.facts['head']['clip_inset'])
        candidates = torch.ones_like(scores, dtype=torch.bool)
        if self.smallest >= 0:
            candidates = (boxes[..., 2:] - boxes[..., :2] > self.smallest).all(dim=2)
        scores = torch.where(candidates, scores, torch.full_like(scores, NO_CANDIDATE))
        config = self.config
        suppress = Suppression(
            *(config.iou_threshold, config.max_per_img, config.class_agnostic),
            cap=self.cap,
            trimmed=self.trimmed,
        )
        dets, ids, *count = suppress(boxes, scores, ids, candidates)
        return dets, ids, *(needed(one, ids, self.cap, config.max_per_img) for one in count)

    def _level(
        self, level: int, logits: torch.Tensor, deltas: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return boxes (B, K, 4), not clipped, scores and level numbers (B, K) of one level."""
        priors = self.priors.single_level_grid_priors(
            deltas.shape[-2:], level, dtype=deltas.dtype, device=deltas.device
        )
        (name, columns), (other, sides) = self.facts['head']['outputs']
        scores = scores_of(torch, self.facts, {name: rows_of(logits, columns)})[..., 0]
        rows = rows_of(deltas, sides)
        most = self.config.nms_pre
        if most > 0:
            scores, chosen = scores.topk(limit(most, scores.shape[1]), dim=1)
            rows, priors = gather_rows(rows, chosen), priors[chosen]
        boxes = boxes_of(torch, self.facts, {other: rows}, priors, level)
        return boxes, scores, torch.full_like(scores, level, dtype=torch.int64)
