"""Faults of YOLACT: fast suppression, prototypes and coefficients, crops, both sizes of masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from planted_boxes import (
    CLIP_SIZE,
    OF_CLIPPING,
    OF_CODER,
    OF_PRIORS,
    SCORES_OF,
    first_of_batch,
    five_percent,
    frozen_limit,
    one_less,
    one_more,
    one_percent_less,
    swapped,
)
from planting import argument, called, planted, result, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from planting import Change

POST = 'mmdeploy_ext.families.yolact.graphs'
FORM, SUPPRESS, MASKS = f'{POST}:YolactFullForm.forward', f'{POST}:fast_suppression', f'{POST}:masks_of'
IOU, RESIZING = (
    'mmdeploy_ext.exporting.ops.nms:pairwise_iou',
    'mmdeploy_ext.exporting.postprocess.mask_resize:resizing',
)
NETWORK = 'mmdeploy_ext.families.yolact.graphs:YolactNetwork.forward'
TOY = 'yolact'


def thresholds(**changes: Callable) -> Change:
    """Return a fault of what `test_cfg` decides."""
    return f'{POST}:thresholds', settings(**changes)


def found(change: Callable) -> Change:
    """Return a fault of what the suppression gives: scores, labels and rows (B, n)."""
    return SUPPRESS, result(lambda right, *_: change(*right))


def without_last_level(maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return class logits, deltas and coefficients in turn, each without its last level."""
    count = len(maps) // 3
    return [one for place, one in enumerate(maps) if place % count != count - 1]


planted('score threshold x 1.05', TOY, thresholds(score_thr=five_percent))
planted('score threshold x 1.03', TOY, thresholds(score_thr=lambda least: least * 1.03))
planted('score threshold x 2', TOY, thresholds(score_thr=lambda least: least * 2))
planted('IoU threshold x 1.05', TOY, thresholds(iou_thr=five_percent))
planted('top_k one less', TOY, thresholds(top_k=one_less))
planted('top_k 8', TOY, thresholds(top_k=lambda most: 8))
planted('max_per_img 39', TOY, thresholds(max_per_img=one_less))
planted('max_per_img 41', TOY, thresholds(max_per_img=one_more))
planted('nms_pre 198', TOY, thresholds(nms_pre=one_percent_less))
planted('nms_pre 40', TOY, thresholds(nms_pre=lambda most: 40))
planted('nms_pre without a limit', TOY, thresholds(nms_pre=lambda most: -1))
planted('as many of a level as the traced size has', TOY, frozen_limit)
planted('no suppression', TOY, (IOU, result(lambda iou, *_: iou * 0)))
planted(
    'suppression by worse boxes', TOY, (IOU, called(lambda original, boxes: original(boxes.flip(1)).flip(1)))
)
planted(
    'suppression: overlaps of boxes that are a pixel wider',
    TOY,
    (IOU, argument(0, lambda boxes: boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))),
)
planted(
    'suppression: boxes of the first class for all',
    TOY,
    (SUPPRESS, argument(1, lambda scores: scores[..., :1].expand_as(scores) * 0.5 + scores * 0.5)),
)
planted('labels of the row', TOY, found(lambda scores, labels, rows: (scores, rows % 6, rows)))
planted(
    'the last level is left out',
    TOY,
    (
        f'{POST}:YolactFullForm.forward',
        called(lambda original, self, *given: original(self, *given[:5], *without_last_level(given[5:]))),
    ),
)
planted(
    'a result more is padding',
    TOY,
    found(
        lambda scores, labels, rows: (
            torch.where(torch.arange(scores.shape[1]) < 39, scores, -torch.ones_like(scores)),
            labels,
            rows,
        )
    ),
)
planted('coefficients of the prior beside', TOY, (MASKS, argument(1, lambda weights: weights.roll(1, 1))))
planted('coefficients without their sign', TOY, (MASKS, argument(1, torch.abs)))
planted('prototypes of the first image', TOY, (MASKS, argument(0, first_of_batch)))
planted(
    'prototypes without their last',
    TOY,
    (
        MASKS,
        argument(0, lambda maps: maps * (torch.arange(maps.shape[1]) < maps.shape[1] - 1)[:, None, None]),
    ),
)
planted(
    'prototypes below zero count', TOY, (NETWORK, result(lambda right, *_: (right[0] - 0.02, *right[1:])))
)
planted('crops of the size of the input', TOY, (MASKS, argument(2, lambda relative: relative * 0.9)))
planted(
    'crops of the whole image',
    TOY,
    (MASKS, argument(2, lambda relative: relative * 0 + relative.new_tensor([0.0, 0.0, 1.0, 1.0]))),
)
planted('crops as y x y x', TOY, (MASKS, argument(2, lambda relative: relative[..., [1, 0, 3, 2]])))
planted('crops a cell too narrow', TOY, (f'{POST}:EDGE', lambda edge: 0.0))
planted('crops a cell too wide', TOY, (f'{POST}:EDGE', lambda edge: 2.0))
planted('mask threshold x 1.05', TOY, (f'{POST}:MASK_THR', five_percent))
planted('mask threshold 0.45', TOY, (f'{POST}:MASK_THR', lambda least: 0.45))
planted("masks of height and width in each other's place", TOY, (MASKS, argument(3, swapped)))
planted('masks a line smaller', TOY, (MASKS, argument(3, lambda target: target - 1)))


def _aligned(original: Callable, size: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return weights of a resize whose corners are aligned."""
    place = torch.arange(target) * ((size - 1) / (target - 1).clamp(min=1))
    return (1 - (place[:, None] - torch.arange(size)).abs()).clamp(min=0)


def _nearest(original: Callable, size: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return weights that take the nearest cell."""
    place = torch.arange(target) * size // target
    return (place[:, None] == torch.arange(size)).float()


planted('masks are resized with aligned corners', TOY, (RESIZING, called(_aligned)))
planted('masks are resized by the nearest cell', TOY, (RESIZING, called(_nearest)))
planted('img_shape left out', TOY, (CLIP_SIZE, argument(1, lambda shape: shape * 0)))
planted('scale_factor as h w h w', TOY, (FORM, argument(3, swapped)))
planted('scale_factor of the first image', TOY, (FORM, argument(3, first_of_batch)))
planted('the original has the size of the input', TOY, (FORM, argument(4, lambda shape: shape * 0)))
planted(
    'the background first',
    TOY,
    (SCORES_OF, called(lambda original, xp, facts, rows: rows['cls_score'].softmax(-1)[..., 1:])),
)
planted(
    'scores by a sigmoid',
    TOY,
    (SCORES_OF, called(lambda original, xp, facts, rows: rows['cls_score'][..., :-1].sigmoid())),
)
for _name, _change in (OF_CLIPPING | OF_PRIORS | OF_CODER).items():
    planted(_name, TOY, _change)


def _ghosts(right: tuple, *_: Any) -> tuple:
    scores, labels, rows = right
    nothing = (scores <= 0).all(1, keepdim=True)
    return torch.where(nothing, torch.full_like(scores, 0.9), scores), labels, rows


def _lonely(right: tuple, *_: Any) -> tuple:
    scores, labels, rows = right
    several = (scores > 0).sum(1, keepdim=True) > 1
    return torch.where(several, scores, -torch.ones_like(scores)), labels, rows


planted('nothing found: boxes of 0.9', TOY, (SUPPRESS, result(_ghosts)))
planted('a single result is lost', TOY, (SUPPRESS, result(_lonely)))
