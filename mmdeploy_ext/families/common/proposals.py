"""Outputs of a region proposal network to boxes: equal to mmdet 2.28.2's `get_bboxes`.

Source: `dense_heads/{rpn_head,ga_rpn_head,cascade_rpn_head}.py`.
Glossary: B batch, a anchors of a cell (1 in a Cascade RPN), A anchors of a level, h, w size of a level's
maps, K boxes of an image: of a level, then candidates of all levels, then proposals, n results of a
suppression, D columns of a box, C channels.
"""

import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmcv import ConfigDict
from torch import nn

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.source_code import is_in_library
from mmdeploy_ext.base.user_modules import users_line
from mmdeploy_ext.exporting.postprocess.suppression import (
    NO_CANDIDATE,
    Suppression,
    clip_to,
    gather_rows,
    limit,
    nms_arguments,
    nms_config,
    number,
    positive,
    rows_of,
)
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.dense_heads import (
    KINDS,
    OWN,
    border_inset,
    chosen_coder,
    clips,
    place_of_results,
    plain_head,
)
from mmdeploy_ext.runtime.box_coders import Coder
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.spec.facts import NmsConfig
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module

heads = mmdet_module('mmdet.models.dense_heads')
HEADS = (heads.GARPNHead, heads.CascadeRPNHead, heads.RPNHead)
GUIDED = KINDS['GuidedAnchorHead']
"""The kind of dense head with the anchors of `GARPNHead`."""
TRIALS = ((0, 0), (1, 0), (2, 12))
"""Seed and `min_bbox_size` of each trial of a head."""
TRIAL_OVERLAP, TRIAL_LIMIT, TRIAL_PER_LEVEL = 0.45, 16, 6
"""IoU, proposals of an image, and candidates of a level, in a trial."""


def check_head(head: nn.Module) -> None:
    if not isinstance(head, HEADS) and not is_users_own(head):
        names = ', '.join(kind.__name__ for kind in HEADS)
        raise ConfigError(f'model.rpn_head.type={type(head).__name__}: supported are {names}')
    if is_staged(head):
        if any(count != 1 for stage in head.stages for count in stage.prior_generator.num_base_priors):
            raise ConfigError('model.rpn_head.stages: expected one anchor per cell, as in Cascade RPN')
        if not head.stages[-1].with_cls:
            raise ConfigError(
                'model.rpn_head.stages[-1].with_cls=False: expected True, since the last stage computes '
                'the scores'
            )
    needed = (*entries_of(head), 'min_bbox_size')
    detector_parts.check_settings(head.test_cfg, 'model.test_cfg.rpn', needed, type(head).__name__)
    # upstream leaves out the last one by -1
    positive('rpn.max_per_img', settings_of(head).get('max_per_img'))
    if is_guided(head):
        positive('rpn.nms_post', head.test_cfg.get('nms_post'))
        if 'nms' in head.test_cfg:  # its get_bboxes reads the entry itself
            number('rpn.nms.iou_threshold', head.test_cfg.nms.get('iou_threshold'), float)
    number('rpn.min_bbox_size', head.test_cfg.get('min_bbox_size'), float)
    proposals_of(head)


def entries_of(head: nn.Module) -> tuple[str, str]:
    """Return the keys of `test_cfg` with overlap and limit; they changed in mmdet 2.10."""
    settings = head.test_cfg or {}
    limit_key = 'max_num' if is_guided(head) else 'nms_post'
    if 'max_per_img' in settings or limit_key not in settings:
        limit_key = 'max_per_img'
    return 'nms_thr' if 'nms_thr' in settings and 'nms' not in settings else 'nms', limit_key


def settings_of(head: nn.Module) -> dict[str, Any]:
    """Return the `test_cfg` of a head by the names of mmdet 2.28."""
    settings, (overlap_key, limit_key) = dict(head.test_cfg), entries_of(head)
    if overlap_key != 'nms':
        settings['nms'] = dict(type='nms', iou_threshold=settings[overlap_key])
    settings['max_per_img'] = settings.get(limit_key)
    return settings


def suppression_entries(head: nn.Module, iou_threshold: float, max_per_img: int) -> dict[str, Any]:
    overlap_key, limit_key = entries_of(head)
    overlap: Any = iou_threshold
    if overlap_key == 'nms':
        overlap = dict(nms_arguments(head.test_cfg.nms), iou_threshold=iou_threshold)
    return {overlap_key: overlap, limit_key: max_per_img}


def thresholds(head: nn.Module) -> NmsConfig:
    return nms_config(dict(settings_of(head), score_thr=0.0), key='model.test_cfg.rpn.nms')


def smallest_side(head: nn.Module, longer: bool) -> float:
    """Return the exclusive least side of proposals, pixels; below 0 any will do."""
    size = float(head.test_cfg.get('min_bbox_size', -1))
    if longer:
        return size
    return float(np.nextafter(np.float32(size), np.float32(0))) if size > 0 else -1.0


def facts_of(head: nn.Module, coder: Coder | None = None) -> dict[str, Any]:
    """Return a `Coder`, a `Head` of `dense_facts`, and `clip`."""
    if coder is not None:
        outputs = (('cls_score', int(head.cls_out_channels)), *coder.columns.items())
        return dict(coder=coder, head=dataclasses.replace(plain_head(head), outputs=outputs), clip=False)
    if is_guided(head):
        return dict(coder=GUIDED.coder(head), head=GUIDED.describe(head), clip=clips(head))
    head = last_stage(head)
    coder = chosen_coder(head, 'model.rpn_head')
    return dict(coder=coder, head=plain_head(head), clip=clips(head))


def is_users_own(head: nn.Module) -> bool:
    is_like = isinstance(head, heads.AnchorHead) and hasattr(head, 'simple_test_rpn')
    return is_like and not isinstance(head, HEADS) and not is_in_library(type(head))


def is_guided(head: nn.Module) -> bool:
    return isinstance(head, heads.GARPNHead)


def is_staged(head: nn.Module) -> bool:
    return isinstance(head, heads.CascadeRPNHead)


def last_stage(head: nn.Module) -> nn.Module:
    return head.stages[-1] if is_staged(head) else head


def generator_of(head: nn.Module) -> Any:
    if is_guided(head):
        return head.square_anchor_generator
    return (head.stages[0] if is_staged(head) else head).prior_generator


def smallest_input(model: nn.Module) -> int:
    """Return the smallest side of an input, pixels; 1 without a head of proposals."""
    if getattr(model, 'rpn_head', None) is None:
        return 1
    return detector_parts.smallest(
        model.rpn_head,
        max(int(stride[0]) for stride in generator_of(model.rpn_head).strides),
        detector_parts.round_down(model),
    )


def output_kinds(head: nn.Module) -> tuple[str, ...]:
    """Return the kinds of outputs that proposals are made of, each of every level."""
    if is_staged(head):
        return ('cls', 'reg', 'prior')
    return ('cls', 'reg', 'shape', 'loc') if is_guided(head) else ('cls', 'reg')


def outputs_of(
    head: nn.Module, maps: Sequence[torch.Tensor], clip_hw: torch.Tensor, priors: Any
) -> list[torch.Tensor]:
    outputs = refined_outputs(head, maps, clip_hw, priors) if is_staged(head) else head(maps)
    return [tensor for levels in outputs for tensor in levels]


def refined_outputs(
    head: nn.Module, maps: Sequence[torch.Tensor], clip_hw: torch.Tensor, priors: Any
) -> tuple[Sequence[torch.Tensor], ...]:
    """Return class logits (B, 1, h, w), deltas (B, 4, h, w) and anchors (B, A, 4) per level of a Cascade RPN.

    They are of the last stage; a softmax has two logits. `priors` makes the first anchors; refined anchors
    are clipped to `clip_hw` (B, 2) if their coder clips.
    """
    batch = maps[0].shape[0]
    anchors = [
        priors.single_level_grid_priors(tensor.shape[-2:], level, dtype=tensor.dtype, device=tensor.device)[
            None
        ]
        for level, tensor in enumerate(maps)
    ]
    anchors = [boxes.expand(batch, -1, -1) for boxes in anchors]
    for index, stage in enumerate(head.stages):
        offsets = None
        if stage.adapt_cfg['type'] == 'offset':
            levels = zip(anchors, maps, stage.anchor_strides, strict=True)
            offsets = [kernel_offsets(boxes, tensor, stride) for boxes, tensor, stride in levels]
        maps, logits, deltas = stage(maps, offsets)
        if index + 1 < len(head.stages):
            coder = chosen_coder(stage, 'model.rpn_head.stages')
            refined = []
            for boxes, tensor in zip(anchors, deltas, strict=True):
                boxes = coder.boxes(torch, boxes, dict(bbox_pred=rows_of(tensor, 4)), 0)
                refined.append(clip_to(boxes, clip_hw, border_inset(stage)) if clips(stage) else boxes)
            anchors = refined
    return logits, deltas, anchors


def kernel_offsets(anchors: torch.Tensor, level: torch.Tensor, stride: float) -> torch.Tensor:
    """Return offsets (B, A, 18) of a 3 x 3 kernel on anchors (B, A, 4) xyxy: y before x, in cells."""
    centres = (anchors[..., :2] + anchors[..., 2:]) * 0.5 / stride
    rows, columns = (torch.arange(side, device=anchors.device).to(anchors) for side in level.shape[-2:])
    cells = torch.stack(torch.meshgrid(columns, rows, indexing='xy'), dim=-1).reshape(-1, 2)
    size = (anchors[..., 2:] - anchors[..., :2]) / stride / 2 - 1
    taps = anchors.new_tensor([[x, y] for y in (-1, 0, 1) for x in (-1, 0, 1)])
    offsets = size[:, :, None] * taps + (centres - cells)[:, :, None]
    return offsets.flip(-1).flatten(2)


def needed(count: torch.Tensor, labels: torch.Tensor, cap: int, max_per_img: int) -> torch.Tensor:
    """Return how many candidates (B,) a capped suppression needs to lose no result.

    `count` (B,) are all candidates, `labels` (B, n) the results of the best `cap`, -1 for padding.
    """
    if not 0 < max_per_img <= cap:
        return count
    return torch.where((labels >= 0).sum(dim=1) >= max_per_img, count.clamp(max=cap), count)


class Proposals(nn.Module):
    """Per level the `nms_pre` best anchors, decoded, clipped, without small boxes; then suppression."""

    facts_of_head = staticmethod(facts_of)
    """Function of a head that returns `facts`."""

    def __init__(
        self, head: nn.Module, trimmed: bool = False, cap: int = 0, longer: bool | None = None
    ) -> None:
        super().__init__()
        self.trimmed, self.cap = trimmed, cap
        self.config = thresholds(head)
        self.priors, self.facts = generator_of(head), self.facts_of_head(head)
        self.kinds = output_kinds(head)
        self.smallest = smallest_side(head, tried(head, type(self)) if longer is None else longer)

    def sides(self, boxes: torch.Tensor) -> torch.Tensor:
        """Return width and height (B, K, 2)."""
        return boxes[..., 2:] - boxes[..., :2]

    def bounds(self, boxes: torch.Tensor) -> torch.Tensor:
        """Return the upright boxes (B, K, 4) xyxy for the suppression."""
        return boxes

    def forward(self, maps: Sequence[torch.Tensor], clip_hw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Choose proposals.

        Args:
            maps: all levels of each of `output_kinds`: class logits (B, a, h, w), or (B, a*2, h, w) for a
                softmax, deltas (B, a*4, h, w), then the other kinds.
            clip_hw: (B, 2) float32 h, w to clip to, pixels.

        Returns:
            dets (B, K, D + 1) box, pixels of the network input, and score, best first, and levels (B, K)
                int64; padding is zero with level -1. With a cap also (B,) int64: how many boxes had to enter
                the suppression, at most the cap unless there are too few proposals.
        """
        config = self.config
        boxes, scores, levels = (
            torch.cat(tensors, dim=1) for tensors in zip(*self._levels(maps), strict=True)
        )
        boxes, scores, candidates = self._large(boxes, scores, clip_hw)
        suppress = Suppression(
            config.iou_threshold,
            config.max_per_img,
            config.class_agnostic,
            cap=self.cap,
            trimmed=self.trimmed,
        )
        dets, levels, *counts = suppress(self.bounds(boxes), scores, levels, candidates, boxes)
        return dets, levels, *(needed(count, levels, self.cap, config.max_per_img) for count in counts)

    def _large(
        self, boxes: torch.Tensor, scores: torch.Tensor, clip_hw: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.facts['clip']:
            boxes = clip_to(boxes, clip_hw, self.facts['head'].clip_inset)
        candidates = scores > NO_CANDIDATE
        if self.smallest >= 0:
            candidates = candidates & (self.sides(boxes) > self.smallest).all(dim=2)
        return boxes, torch.where(candidates, scores, torch.full_like(scores, NO_CANDIDATE)), candidates

    def _levels(
        self, maps: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        count = len(maps) // len(self.kinds)
        for level in range(count):
            outputs = dict(zip(self.kinds, maps[level::count], strict=True))
            deltas, priors = outputs['reg'], outputs.get('prior')
            if priors is None:
                priors = self.priors.single_level_grid_priors(
                    deltas.shape[-2:], level, dtype=deltas.dtype, device=deltas.device
                )
            columns = self.facts['head'].outputs
            rows = {
                name: rows_of(outputs[kind], size)
                for kind, (name, size) in zip(outputs, columns, strict=False)
            }
            scores = self.facts['head'].class_scores(torch, rows)[..., 0]
            if self.config.nms_pre > 0:
                scores, best = scores.topk(limit(self.config.nms_pre, scores.shape[1]), dim=1)
                rows = {name: gather_rows(tensor, best) for name, tensor in rows.items()}
                priors = gather_rows(priors, best) if 'prior' in outputs else priors[best]
            boxes = self.facts['coder'].boxes(torch, priors, rows, level)
            yield boxes, scores, torch.full_like(scores, level, dtype=torch.int64)


class GuidedProposals(Proposals):
    """Proposals of guided anchors: suppression per level, the best `nms_post` of each, then the best."""

    def __init__(
        self, head: nn.Module, trimmed: bool = False, cap: int = 0, longer: bool | None = None
    ) -> None:
        super().__init__(head, trimmed, 0, longer)  # there is no cap
        self.max_per_level = int(head.test_cfg.nms_post)
        self.across = bool(head.test_cfg.get('nms_across_levels', False))

    def forward(self, maps: Sequence[torch.Tensor], clip_hw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        best, threshold = [], self.config.iou_threshold
        for boxes, scores, _ in self._levels(maps):
            boxes, scores, candidates = self._large(boxes, scores, clip_hw)
            within = Suppression(threshold, self.max_per_level, class_agnostic=True, trimmed=False)
            best.append(within(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), candidates))
        dets, levels = (torch.cat(tensors, dim=1) for tensors in zip(*best, strict=True))
        scores = torch.where(levels >= 0, dets[..., 4], torch.full_like(dets[..., 4], NO_CANDIDATE))
        across = Suppression(
            threshold,
            self.config.max_per_img,
            class_agnostic=True,
            suppresses=self.across,
            trimmed=self.trimmed,
        )
        return across(dets[..., :4], scores, levels.clamp(min=0), levels >= 0)


def proposals_of(head: nn.Module, trimmed: bool = False, cap: int = 0) -> Proposals:
    return (GuidedProposals if is_guided(head) else Proposals)(head, trimmed, cap)


# --- the user's own method, tried -------------------------------------------------------------------------

_LONGER: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def tried(head: nn.Module, make: type[Proposals]) -> bool:
    """Try whether sides must exceed `min_bbox_size` (True) or reach it."""
    if head in _LONGER:
        return _LONGER[head]
    place = place_of_results(last_stage(head))
    remaining = [True, False]
    for seed, smallest in TRIALS:
        changed = suppression_entries(head, TRIAL_OVERLAP, TRIAL_LIMIT)
        changed |= dict(nms_pre=TRIAL_PER_LEVEL, min_bbox_size=smallest)
        if is_guided(head):
            changed['nms_post'] = TRIAL_PER_LEVEL - 2
        kept = {name: value for name, value in head.test_cfg.items() if name != 'deploy_nms_pre'}
        with replaced_entry(vars(head), 'test_cfg', ConfigDict(kept, **changed)), torch.no_grad():
            modules = {longer: make(head, longer=longer) for longer in remaining}
            maps, size = generated(head, modules[remaining[0]], seed)
            try:
                wanted = own_proposals(head, maps, size)
            except Exception as error:
                raised = f'{type(error).__name__}: {error}{users_line(error)}'
                raise ConfigError(f'{place} raises on generated outputs: {raised}; use {OWN}') from error
            clip_hw = maps[0].new_tensor([size])
            remaining = [
                longer for longer, module in modules.items() if same(_found(*module(maps, clip_hw)), wanted)
            ]
        if not remaining:
            raise ConfigError(f'{place} selects proposals in a way that mm2onnx does not know: use {OWN}')
    _LONGER[head] = remaining[0]
    return _LONGER[head]


def same(found: Detections, wanted: Detections) -> bool:
    """Return whether two lists have the same detections, in any order."""
    if len(found) != len(wanted):
        return False
    scale = max(1.0, float(np.abs(wanted.bboxes_xyxy).max(initial=0)))
    free = np.ones(len(found), bool)
    for box, score, label in zip(wanted.bboxes_xyxy, wanted.scores, wanted.labels, strict=True):
        near = free & (found.labels == label) & (np.abs(found.scores - score) <= 1e-5)
        near &= np.abs(found.bboxes_xyxy - box).max(1) <= 1e-4 * scale
        if not near.any():
            return False
        free[near.argmax()] = False
    return True


def generated(head: nn.Module, module: Proposals, seed: int) -> tuple[list[torch.Tensor], tuple[int, int]]:
    """Return outputs of small maps, by kind, then by level, and the picture's (h, w)."""
    draw, generator, maps = torch.Generator().manual_seed(seed), generator_of(head), []
    size = (5, 8) if len(generator.strides) == 1 else (2, 4)
    for name, columns in module.facts['head'].outputs:
        for priors in generator.num_base_priors:
            values = torch.randn(1, priors, columns, *size, generator=draw)
            values *= 2.0 if name in ('cls_score', 'loc_pred') else 0.4
            if name == 'bbox_pred':
                outside = torch.rand(1, priors, 1, *size, generator=draw) < 0.2
                values[:, :, :1] += 60.0 * outside
                values[:, :, 4:] *= 5.0  # offsets of corners, which are clamped: both may leave a line
            maps.append(values.flatten(1, 2))
    if is_staged(head):
        levels = range(len(generator.strides))
        maps += [generator.single_level_grid_priors(size, level, device='cpu')[None] for level in levels]
    largest, like = max(int(stride[0]) for stride in generator.strides), next(head.parameters())
    return [tensor.to(like) for tensor in maps], (round(1.2 * largest), round(3.3 * largest))


def own_proposals(head: nn.Module, maps: Sequence[torch.Tensor], size: tuple[int, int]) -> Detections:
    levels = len(maps) // len(output_kinds(head))
    outputs = tuple(list(maps[index : index + levels]) for index in range(0, len(maps), levels))
    shape = (*size, 3)
    metas = [dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=np.ones(4, np.float32))]
    if is_staged(head):
        logits, deltas, anchors = outputs
        anchors = [[level[0] for level in anchors]]
        (rows,) = last_stage(head).get_bboxes(anchors, logits, deltas, metas, head.test_cfg)
    else:
        with replaced_entry(vars(head), 'forward', lambda features: outputs):
            (rows,) = head.simple_test_rpn(outputs[0], metas)
    return _found(rows[None], torch.zeros(1, len(rows)))


def _found(dets: torch.Tensor, levels: torch.Tensor, *_: torch.Tensor) -> Detections:
    rows = dets[levels >= 0].cpu().numpy()
    return Detections(rows[:, :-1], rows[:, -1], np.zeros(len(rows), np.int64))
