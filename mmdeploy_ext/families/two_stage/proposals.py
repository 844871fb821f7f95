"""From the outputs of a region proposal network to boxes: equal to mmdet 2.28.2's `get_bboxes`.

Source: `dense_heads/{rpn_head,ga_rpn_head,cascade_rpn_head}.py`. Glossary: B batch, A anchors of a level, K
proposals kept per image at most.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models import dense_heads as heads
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_release
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.sizes import limit
from mmdeploy_ext.exporting.postprocess.suppression import (
    NO_CANDIDATE,
    NmsConfig,
    Suppression,
    clip_to,
    gather_rows,
    nms_config,
    number,
    positive,
)
from mmdeploy_ext.families.parts import detector_parts
from mmdeploy_ext.families.parts.dense_heads import KINDS, chosen_coder, clips, plain_head
from mmdeploy_ext.families.parts.priors import rows_of, same_priors
from mmdeploy_ext.families.parts.runtime.box_coders import boxes_of, scores_of
from mmdeploy_ext.families.two_stage import staged

HEADS = (heads.GARPNHead, heads.CascadeRPNHead, heads.RPNHead)
METHODS = (
    *('simple_test_rpn', 'get_bboxes', '_get_bboxes_single', '_bbox_post_process'),
    *('get_anchors', '_get_guided_anchors_single'),
)
"""Methods of heads of proposals that the graphs compute by themselves."""
GUIDED = KINDS['GuidedAnchorHead']
STRICTLY_LONGER = {True: (2, 15), False: (2, 14)}
"""Whether a head is a plain one -> release of mmdet since which sides have to be longer than a minimum
(compared: 2.11.0, 2.14.0 and 2.25.3)."""


def check_head(head: nn.Module) -> None:
    """Refuse (ConfigError) a head of proposals that the graph does not repeat."""
    if not isinstance(head, HEADS):
        known = ', '.join(one.__name__ for one in HEADS)
        raise ConfigError(f'model.rpn_head.type={type(head).__name__}: proposals export from {known}')
    if is_staged(head):
        staged.check_stages(head)
    thresholds(head)
    if is_guided(head):
        positive('rpn.nms_post', head.test_cfg.get('nms_post'))
    smallest_side(head)
    facts_of(head)


def thresholds(head: nn.Module) -> NmsConfig:
    """Return what `test_cfg.rpn` decides; scores have no threshold there."""
    return nms_config(dict(head.test_cfg, score_thr=0.0), key='model.test_cfg.rpn')


def smallest_side(head: nn.Module) -> float:
    """Return what sides of proposals have to be longer than, pixels; below 0 any will do.

    It is `min_bbox_size`. An mmdet before `STRICTLY_LONGER` keeps sides of that length, and with 0 also boxes
    without area.
    """
    size = float(number('rpn.min_bbox_size', head.test_cfg.get('min_bbox_size', -1), float))
    plain = not (is_guided(head) or is_staged(head))
    if mmdet_release() >= STRICTLY_LONGER[plain]:
        return size
    return float(np.nextafter(np.float32(size), np.float32(0))) if size > 0 else -1.0


def facts_of(head: nn.Module) -> dict[str, Any]:
    """Return the coder and what the outputs are, as `families/dense/runtime` reads them."""
    if is_guided(head):
        return dict(coder=GUIDED.coder(head), head=GUIDED.head(head).to_json(), clip=bool(clips(head)))
    head = last_stage(head)
    coder = chosen_coder(head, 'model.rpn_head')
    return dict(coder=coder, head=plain_head(head).to_json(), clip=bool(clips(head)))


def is_guided(head: nn.Module) -> bool:
    """Return whether the network says where anchors are, and of which size."""
    return isinstance(head, heads.GARPNHead)


def is_staged(head: nn.Module) -> bool:
    """Return whether anchors are refined by several stages."""
    return isinstance(head, heads.CascadeRPNHead)


def last_stage(head: nn.Module) -> nn.Module:
    """Return the head that scores: the last stage of those that refine anchors, or the head itself."""
    return head.stages[-1] if is_staged(head) else head


def generator_of(head: nn.Module) -> Any:
    """Return what makes the anchors of a head."""
    if is_guided(head):
        return head.square_anchor_generator
    return (head.stages[0] if is_staged(head) else head).prior_generator


def smallest_input(model: nn.Module) -> int:
    """Return the smallest side of an input, pixels."""
    if getattr(model, 'rpn_head', None) is None:
        return 1
    return detector_parts.smallest(
        model.rpn_head,
        max(int(one[0]) for one in generator_of(model.rpn_head).strides),
        detector_parts.round_down(model),
    )


def output_kinds(head: nn.Module) -> tuple[str, ...]:
    """Return the kinds of outputs that proposals are made of."""
    if is_staged(head):
        return ('cls', 'reg', 'prior')
    return ('cls', 'reg', 'shape', 'loc') if is_guided(head) else ('cls', 'reg')


def outputs_of(
    head: nn.Module, maps: Sequence[torch.Tensor], clip_hw: torch.Tensor, priors: Any
) -> list[torch.Tensor]:
    """Return the outputs of a head, kind by kind; staged heads refine `priors` and clip to `clip_hw`."""
    found = staged.outputs_of(head, maps, clip_hw, priors) if is_staged(head) else head(maps)
    return [one for kind in found for one in kind]


def needed(count: torch.Tensor, labels: torch.Tensor, cap: int, most: int) -> torch.Tensor:
    """Return how many of `count` (B,) candidates a suppression had to look at, of the best `cap`.

    Its `labels` (B, n) are -1 where a row is padding; a list of `most` results lacks none, and none is full
    where that is more than the cap.
    """
    if not 0 < most <= cap:
        return count
    return torch.where((labels >= 0).sum(dim=1) >= most, count.clamp(max=cap), count)


class Proposals(nn.Module):
    """Per level the `nms_pre` best anchors, decoded and clipped, those that are large enough; suppression."""

    def __init__(self, head: nn.Module, trimmed: bool = False, cap: int = 0) -> None:
        """Keep what makes the anchors, and the settings; none of the head's layers is used.

        `trimmed` cuts off rows that no image of the batch has; for `cap` see `Suppression`.
        """
        super().__init__()
        self.trimmed, self.cap = trimmed, cap
        self.config, self.smallest = thresholds(head), smallest_side(head)
        self.priors, self.facts = same_priors(generator_of(head)), facts_of(head)
        self.kinds = output_kinds(head)

    def forward(self, maps: Sequence[torch.Tensor], clip_hw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Choose proposals, of the kinds of `output_kinds` in turn, every level of each.

        Args:
            maps: class logits (B, a, h, w), deltas (B, a*4, h, w), and what else there is.
            clip_hw: (B, 2) float32 height and width that boxes are clipped to.

        Returns:
            dets (B, K, 5) xyxy and score, the best first, and levels (B, K) int64; rows that an image does
            not have are zero with level -1. With a cap also (B,) int64: how many boxes had to enter the
            suppression: all where there are fewer proposals than there may be, else no more than the cap.
        """
        boxes, scores, ids = (torch.cat(some, dim=1) for some in zip(*self._levels(maps), strict=True))
        scores, candidates = self._large(boxes := self._clipped(boxes, clip_hw), scores)
        config = self.config
        suppress = Suppression(
            *(config.iou_threshold, config.max_per_img, config.class_agnostic),
            cap=self.cap,
            trimmed=self.trimmed,
        )
        dets, ids, *count = suppress(boxes, scores, ids, candidates)
        return dets, ids, *(needed(one, ids, self.cap, config.max_per_img) for one in count)

    def _clipped(self, boxes: torch.Tensor, clip_hw: torch.Tensor) -> torch.Tensor:
        return clip_to(boxes, clip_hw, self.facts['head']['clip_inset']) if self.facts['clip'] else boxes

    def _large(self, boxes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (B, K), `NO_CANDIDATE` where a box is too small, and which rows are candidates."""
        candidates = scores > NO_CANDIDATE
        if self.smallest >= 0:
            candidates = candidates & (boxes[..., 2:] - boxes[..., :2] > self.smallest).all(dim=2)
        return torch.where(candidates, scores, torch.full_like(scores, NO_CANDIDATE)), candidates

    def _levels(self, maps: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield boxes (B, K, 4), not clipped, scores and level numbers (B, K) of every level."""
        count = len(maps) // len(self.kinds)
        for level in range(count):
            yield self._level(level, dict(zip(self.kinds, maps[level::count], strict=True)))

    def _level(
        self, level: int, maps: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        deltas, priors = maps['reg'], maps.get('prior')
        if priors is None:
            priors = self.priors.single_level_grid_priors(
                deltas.shape[-2:], level, dtype=deltas.dtype, device=deltas.device
            )
        outputs = self.facts['head']['outputs']
        rows = {name: rows_of(maps[kind], size) for kind, (name, size) in zip(maps, outputs, strict=False)}
        scores = scores_of(torch, self.facts, rows)[..., 0]
        most = self.config.nms_pre
        if most > 0:
            scores, chosen = scores.topk(limit(most, scores.shape[1]), dim=1)
            rows = {name: gather_rows(one, chosen) for name, one in rows.items()}
            priors = priors[chosen] if 'prior' not in maps else gather_rows(priors, chosen)
        boxes = boxes_of(torch, self.facts, rows, priors, level)
        return boxes, scores, torch.full_like(scores, level, dtype=torch.int64)


class GuidedProposals(Proposals):
    """Proposals of guided anchors: suppressed level by level, the best `nms_post` of each, then the best."""

    def __init__(self, head: nn.Module, trimmed: bool = False, cap: int = 0) -> None:
        """See `Proposals`; there is no cap."""
        super().__init__(head, trimmed)
        self.most_of_level = int(head.test_cfg.nms_post)
        self.across = bool(head.test_cfg.get('nms_across_levels', False))

    def forward(self, maps: Sequence[torch.Tensor], clip_hw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See `Proposals.forward`; all are of level 0."""
        found, threshold = [], self.config.iou_threshold
        for boxes, scores, _ in self._levels(maps):
            scores, candidates = self._large(boxes := self._clipped(boxes, clip_hw), scores)
            within = Suppression(threshold, self.most_of_level, class_agnostic=True, trimmed=False)
            found.append(within(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), candidates))
        dets, levels = (torch.cat(some, dim=1) for some in zip(*found, strict=True))
        scores = torch.where(levels >= 0, dets[..., 4], torch.full_like(dets[..., 4], NO_CANDIDATE))
        across = Suppression(threshold, self.config.max_per_img, True, self.across, trimmed=self.trimmed)
        return across(dets[..., :4], scores, levels.clamp(min=0), levels >= 0)


def proposals_of(head: nn.Module, trimmed: bool = False, cap: int = 0) -> Proposals:
    """Return what makes proposals of the outputs of a head; see `Proposals`."""
    return (GuidedProposals if is_guided(head) else Proposals)(head, trimmed, cap)
