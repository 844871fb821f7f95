"""Faults of CornerNet and CentripetalNet: peaks, pairs of corners, borders, soft suppression."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from planted_boxes import first_of_batch, five_percent, one_less, one_more, one_percent_less, swapped
from planting import argument, called, planted, result, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from planting import Change

POST = 'mmdeploy_ext.families.corner.graphs'
BEST, FORM = f'{POST}:best_corners', f'{POST}:CornerFullForm.forward'
SUPPRESSION = 'mmdeploy_ext.exporting.postprocess.suppression:Suppression.__call__'
OFFSETS = 'mmdeploy_ext.exporting.ops.nms:class_offsets'
PEAKS = 'mmdeploy_ext.families.parts.runtime.box_coders:peaks_of'
NETWORK = 'mmdeploy_ext.families.corner.graphs:CornerNetwork.forward'
TOY, BOTH = 'cornernet', 'cornernet centripetalnet'


def thresholds(**changes: Callable) -> Change:
    """Return a fault of what `test_cfg` decides."""
    return f'{POST}:thresholds', settings(**changes)


def suppression(**changes: Callable) -> Change:
    """Return a fault of what suppresses pairs."""
    return f'{POST}:suppression', settings(**changes)


def soft(**changes: Callable) -> Change:
    """Return a fault of the soft suppression."""
    return suppression(
        soft=lambda right: dataclasses.replace(
            right, **{name: change(getattr(right, name)) for name, change in changes.items()}
        )
    )


def corners(**changes: Callable) -> Change:
    """Return a fault of the best corners: attribute -> change of its value."""
    return BEST, settings(**changes)


def maps(change: Callable) -> Change:
    """Return a fault of what the network gives: heat, offsets, pairs of the first and of the last corners."""
    return NETWORK, result(lambda right, *_: change(*right))


planted('fewer corners: 99', BOTH, thresholds(corner_topk=one_less))
planted('fewer corners: 40', TOY, thresholds(corner_topk=lambda most: 40))
planted('more corners: 120', TOY, thresholds(corner_topk=lambda most: 120))
planted('max_per_img 39', TOY, suppression(max_per_img=one_less))
planted('max_per_img 41', TOY, suppression(max_per_img=one_more))
planted('peaks of a larger window', TOY, thresholds(local_maximum_kernel=lambda side: 7))
planted('no peaks', TOY, thresholds(local_maximum_kernel=lambda side: 1))
planted('peaks of logits that are no scores', TOY, (PEAKS, result(lambda peaks, *_: peaks * 0.99)))
planted('distance x 1.05', BOTH, thresholds(distance_threshold=five_percent))
planted('distance 0.3', TOY, thresholds(distance_threshold=lambda most: 0.3))
planted('distance without a limit', TOY, thresholds(distance_threshold=lambda most: 1e9))
planted('pairs: 990 enter the suppression', TOY, (f'{POST}:PAIRS', one_percent_less))
planted('pairs: 100 enter the suppression', TOY, (f'{POST}:PAIRS', lambda most: 100))
planted('corners grouped across classes', BOTH, corners(labels=lambda labels: labels * 0))
planted('classes in the reverse order', TOY, corners(labels=lambda labels: 5 - labels))
planted('corners of the peak beside', TOY, corners(points=lambda points: points.roll(1, 1)))
planted('corners half a cell off', BOTH, corners(points=lambda points: points + 0.5))
planted('corners as y x', TOY, corners(points=swapped))
planted('corners of whole cells', TOY, corners(points=torch.floor))
planted('embeddings of the first image', TOY, corners(pairing=first_of_batch))
planted('embeddings rounded to 1 / 4', TOY, corners(pairing=lambda pairing: (pairing * 4).round() / 4))
planted('embeddings of the peak beside', TOY, corners(pairing=lambda pairing: pairing.roll(1, 1)))
planted('scores of the corners multiplied', TOY, corners(scores=lambda scores: scores**2))
planted('scores rounded to float16', TOY, corners(scores=lambda scores: scores.half().float()))
planted('offsets left out', TOY, maps(lambda a, off, b, c, off2, d: (a, off * 0, b, c, off2 * 0, d)))
planted('offsets of the other corners', TOY, maps(lambda a, off, b, c, off2, d: (a, off2, b, c, off, d)))
planted('corners change places', TOY, maps(lambda *given: (*given[3:], *given[:3])))
planted(
    'the last column of maps is left out',
    TOY,
    maps(lambda heat, *rest: (torch.cat([heat[..., :-1], heat[..., -1:] - 50], 3), *rest)),
)
planted('border left in', BOTH, (FORM, argument(3, torch.zeros_like)))
planted('border as x y', TOY, (FORM, argument(3, swapped)))
planted('border of the first image', TOY, (FORM, argument(3, first_of_batch)))
planted(
    'border after rescaling',
    TOY,
    (
        FORM,
        called(
            lambda original, self, image, scale, border, *rest: original(
                self, image, scale, border * scale[:, :2], *rest
            )
        ),
    ),
)
planted('scale_factor as h w h w', TOY, (FORM, argument(2, swapped)))
planted('scale_factor of the first image', TOY, (FORM, argument(2, first_of_batch)))
planted(
    'one scale for width and height', TOY, (FORM, argument(2, lambda scale: scale[:, :1].expand_as(scale)))
)
planted(
    'cells of 4 pixels whatever the size of the input',
    TOY,
    (FORM, argument(1, lambda image: image[:, :, : image.shape[2] // 4 * 4, : image.shape[3] // 4 * 4])),
)
planted('suppressed for good', BOTH, suppression(soft=lambda right: None))
planted('suppression across classes', TOY, suppression(class_agnostic=lambda right: True))
planted('suppression: no offsets of classes', TOY, (OFFSETS, called(lambda original, boxes, *_: boxes)))
planted('suppression: IoU threshold x 1.05', TOY, suppression(iou_threshold=five_percent))
planted('suppression: another method', TOY, soft(method=lambda right: 'linear'))
planted('suppression: sigma x 1.05', TOY, soft(sigma=five_percent))
planted('suppression: least score 0.2', TOY, soft(min_score=lambda least: 0.2))
planted(
    'suppression: overlaps of boxes that are a pixel wider',
    TOY,
    (
        SUPPRESSION,
        called(
            lambda original, self, boxes, *rest: _narrower(
                original(self, boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0]), *rest)
            )
        ),
    ),
)


def _narrower(results: tuple) -> tuple:
    dets, labels, *others = results
    return dets - dets.new_tensor([0.0, 0.0, 1.0, 1.0, 0.0]) * (labels >= 0)[..., None], labels, *others


def _ghosts(results: tuple, *_: Any) -> tuple:
    dets, labels, *others = results
    nothing = (labels < 0).all(1, keepdim=True)
    ghost = dets.new_tensor([0.0, 0.0, 9.0, 9.0, 0.9]).expand_as(dets)
    return torch.where(nothing[..., None], ghost, dets), torch.where(nothing, labels * 0, labels), *others


def _lonely(results: tuple, *_: Any) -> tuple:
    dets, labels, *others = results
    several = (labels >= 0).sum(1, keepdim=True) > 1
    return dets * several[..., None], torch.where(several, labels, -torch.ones_like(labels)), *others


def _below(results: tuple, *_: Any) -> tuple:
    dets, labels, *others = results
    low = dets[..., 4] < 0.05
    return dets * ~low[..., None], torch.where(low, -torch.ones_like(labels), labels), *others


planted('nothing found: boxes of 0.9', TOY, (SUPPRESSION, result(_ghosts)))
planted('a single result is lost', TOY, (SUPPRESSION, result(_lonely)))
planted('results below 0.05 are dropped', TOY, (SUPPRESSION, result(_below)))
CENTRIPETAL = 'centripetalnet'
planted(
    'share of the central region x 1.05',
    CENTRIPETAL,
    (f'{POST}:CENTRAL', lambda central: tuple(one * 1.05 for one in central)),
)
planted('one size of central regions', CENTRIPETAL, (f'{POST}:CENTRAL', lambda central: (1.5, 1.5)))
planted('large boxes begin at 350 pixels', CENTRIPETAL, (f'{POST}:LARGE', lambda area: 350.0))
planted(
    'shifts that are no exponentials',
    CENTRIPETAL,
    corners(pairing=lambda pairing: (1 + pairing).clamp(min=1e-6).log()),
)
planted('shifts as y x', CENTRIPETAL, corners(pairing=swapped))
