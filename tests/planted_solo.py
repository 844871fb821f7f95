"""Faults of SOLO, Decoupled SOLO and SOLOv2: networks, matrix suppression, masks, both ends of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from planted_boxes import first_of_batch, five_percent, one_less, one_more, one_percent_less, swapped
from planting import argument, arguments, called, planted, result, settings, traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from planting import Change

CLASSES = 6
NETWORKS, MASK = 'mmdeploy_ext.families.solo.networks', 'mmdeploy_ext.exporting.postprocess.mask'
SOFT, RESIZE = (
    'mmdeploy_ext.exporting.postprocess.soft_masks',
    'mmdeploy_ext.exporting.postprocess.mask_resize',
)
POST, DECAY = f'{MASK}:MaskPostprocess.forward', f'{MASK}:matrix_decay'
RESIZED = f'{RESIZE}:resize_and_threshold'
WRITTEN = 'mmdeploy_ext.families.solo.family:SoloFamily.postprocess_facts'
V2, DECOUPLED, PLAIN = 'solov2', 'decoupled_solo', 'solo'
BOTH, EVERY = f'{V2} {DECOUPLED}', f'{V2} {DECOUPLED} {PLAIN}'


def thresholds(**changes: Callable) -> Change:
    """Return a fault of what `test_cfg` decides."""
    return f'{MASK}:mask_config', settings(**changes)


def decay(change: Callable) -> Change:
    """Return a fault of the matrix suppression: change of scores, labels, areas, overlaps and settings."""
    return DECAY, arguments(change)


def masks(place: int, change: Callable) -> Change:
    """Return a fault of an argument of the resizes: soft masks 0, img_shape 1, ori_shape 2, threshold 4."""
    return RESIZED, argument(place, change)


planted('score threshold x 1.2', BOTH, thresholds(score_thr=lambda least: least * 1.2))
planted('score threshold x 1.05', PLAIN, thresholds(score_thr=five_percent))
planted('mask threshold + 0.02', BOTH, thresholds(mask_thr=lambda least: least + 0.02))
planted('mask threshold x 1.05', PLAIN, thresholds(mask_thr=five_percent))
planted('filter_thr x 1.2', DECOUPLED, thresholds(filter_thr=lambda least: least * 1.2))
planted('filter_thr x 1.05', PLAIN, thresholds(filter_thr=five_percent))
planted('a tenth of nms_pre', DECOUPLED, thresholds(nms_pre=lambda most: most // 10))
planted('nms_pre 1 % less', PLAIN, thresholds(nms_pre=one_percent_less))
planted('nms_pre without a limit', V2, thresholds(nms_pre=lambda most: -1))
planted('max_per_img 99', EVERY, thresholds(max_per_img=one_less))
planted('max_per_img 101', V2, thresholds(max_per_img=one_more))
planted('sigma of the kernel + 5 %', DECOUPLED, thresholds(sigma=five_percent))
planted('a linear kernel', V2, thresholds(kernel=lambda kernel: 'linear'))
planted(
    'points NMS looks right and down',
    DECOUPLED,
    (f'{NETWORKS}:points_nms', called(lambda original, logits: original(logits.flip(2, 3)).flip(2, 3))),
)
planted('no points NMS', V2, (f'{NETWORKS}:points_nms', called(lambda original, logits: logits.sigmoid())))
planted(
    'points NMS of three by three cells',
    V2,
    (
        f'{NETWORKS}:points_nms',
        called(
            lambda original, logits: (
                (logits == torch.nn.functional.max_pool2d(logits, 3, 1, 1)) * logits.sigmoid()
            )
        ),
    ),
)
planted(
    'bilinear resizes align corners',
    V2,
    (
        f'{NETWORKS}:resize',
        called(
            lambda original, features, size: torch.nn.functional.interpolate(
                features, size=size, mode='bilinear', align_corners=True
            )
        ),
    ),
)
planted(
    'resizes to grids take the nearest cell',
    V2,
    (
        f'{NETWORKS}:resize',
        called(
            lambda original, features, size: torch.nn.functional.interpolate(
                features, size=size, mode='nearest'
            )
        ),
    ),
)
planted(
    'coordinates without the end points',
    DECOUPLED,
    (
        f'{NETWORKS}:Coordinates.forward',
        called(
            lambda original, self, features: (
                original(self, features) * (1 - 1 / torch.tensor(features.shape[3]))
            )
        ),
    ),
)
planted(
    'coordinates of the middles of cells',
    V2,
    (
        f'{NETWORKS}:Coordinates.forward',
        called(
            lambda original, self, features: (
                original(self, features)
                * torch.stack(
                    [1 - 1 / torch.as_tensor(features.shape[3]), 1 - 1 / torch.as_tensor(features.shape[2])]
                )[None, :, None, None]
            )
        ),
    ),
)
planted(
    'coordinates: y before x',
    PLAIN,
    (f'{NETWORKS}:Coordinates.forward', result(lambda right, *_: right.flip(1))),
)
planted(
    'cells of scores column by column, those of kernels row by row',
    V2,
    (
        f'{NETWORKS}:flat_cells',
        argument(0, lambda levels: [x.transpose(2, 3) if x.shape[1] == CLASSES else x for x in levels]),
    ),
)
planted(
    'the last level is left out',
    V2,
    (f'{NETWORKS}:flat_cells', argument(0, lambda levels: [*levels[:-1], levels[-1] * 0])),
)
planted(
    'features of masks without their last level',
    V2,
    (f'{NETWORKS}:SoloV2Levels.mask_features', argument(1, lambda maps: [*maps[:3], maps[3] * 0, *maps[4:]])),
)
planted(
    'features of masks below zero',
    V2,
    (f'{NETWORKS}:SoloV2Levels.mask_features', result(lambda right, *_: right - 0.02)),
)
planted('scores of classes in the reverse order', PLAIN, (POST, argument(1, lambda scores: scores.flip(2))))
planted('scores rounded to float16', V2, (POST, argument(1, lambda scores: scores.half().float())))
planted(
    'scores without maskness',
    DECOUPLED,
    (f'{SOFT}:SoftMasks.sums', result(lambda right, *_: (right[0], right[0]))),
)
planted(
    'areas of half the stride count',
    V2,
    (f'{SOFT}:SoftMasks.sums', result(lambda right, *_: (right[0] * 2, right[1] * 2))),
)
planted(
    'areas larger than a stride by one pixel',
    V2,
    (
        f'{SOFT}:SoftMasks.sums',
        result(lambda right, *_: (right[0] - 1, right[1] * (right[0] - 1) / right[0].clamp(min=1))),
    ),
)
planted('overlaps of masks beyond 0.6', V2, (f'{SOFT}:SoftMasks.overlaps', argument(2, lambda least: 0.6)))
planted('masks are not cropped to img_shape', DECOUPLED, masks(1, torch.zeros_like))
planted('masks are cropped to the first image', V2, masks(1, first_of_batch))
planted('masks are cropped as w h', DECOUPLED, masks(1, swapped))
planted("masks of height and width in each other's place", V2, masks(2, swapped))
planted('masks have the size of the input', DECOUPLED, masks(2, lambda size: size * 0))
planted('masks a line smaller', V2, masks(2, lambda size: size - 1))
planted('mask threshold of the result x 1.05', V2, masks(4, five_percent))
planted(
    'masks are resized by the nearest cell',
    DECOUPLED,
    (f'{RESIZE}:interpolation', called(lambda original, *given: _nearest(original(*given)))),
)


def _nearest(weights: torch.Tensor) -> torch.Tensor:
    """Return weights that take the nearest cell alone."""
    return (weights == weights.amax(-1, keepdim=True)).to(weights.dtype)


planted(
    'matrix NMS compensates along the wrong axis',
    V2,
    decay(lambda scores, labels, areas, overlaps, config: (scores, labels, areas.flip(1), overlaps, config)),
)
planted(
    'matrix NMS: across classes',
    DECOUPLED,
    decay(lambda scores, labels, areas, overlaps, config: (scores, labels * 0, areas, overlaps, config)),
)
planted(
    'matrix NMS: areas are halved',
    V2,
    decay(lambda scores, labels, areas, overlaps, config: (scores, labels, areas * 0.5, overlaps, config)),
)
planted('matrix NMS: left out', V2, (DECAY, result(lambda factors, *_: torch.ones_like(factors))))
planted(
    'matrix NMS: no compensation', DECOUPLED, (DECAY, called(lambda original, *given: _plain_decay(*given)))
)


def _plain_decay(scores: Any, labels: Any, areas: Any, overlaps: Any, config: Any) -> torch.Tensor:
    order = torch.arange(scores.shape[1])
    related = (order[:, None] < order)[None] & (labels[:, :, None] == labels[:, None])
    union = areas[:, None] + areas[:, :, None] - overlaps
    iou = torch.where(related, overlaps / union.clamp(min=1), torch.zeros_like(overlaps))
    return torch.exp(-config.sigma * iou**2).amin(1)


PICK = f'{SOFT}:pick_rows'
planted(
    'masks of every third image are of the first',
    V2,
    (PICK, argument(0, lambda table: table[torch.arange(table.shape[0]) % 2])),
)
planted('masks of the cell beside', DECOUPLED, (PICK, argument(1, lambda rows: (rows - 1).clamp(min=0))))
planted(
    'masks: columns and rows change places',
    DECOUPLED,
    (
        f'{SOFT}:ProductMasks.__init__',
        called(lambda original, self, columns, rows, grids: original(self, rows, columns, grids)),
    ),
)
planted(
    'masks: the sum of columns and rows',
    DECOUPLED,
    (f'{SOFT}:ProductMasks.maps', result(lambda right, *_: right.sqrt())),
)


def _ghosts(results: tuple, *_: Any) -> tuple:
    """Return a mask of 0.9 for images without a result; others get a row of padding more."""
    found, scores, labels, *others = results
    nothing = (labels >= 0).sum(1, keepdim=True) == 0
    spare = torch.zeros_like(found[:, :1].sum(1, keepdim=True)) > 0
    whole = torch.cat([found, spare], 1) | nothing[..., None, None]
    scores, labels = (
        torch.nn.functional.pad(scores, (0, 1)),
        torch.nn.functional.pad(labels, (0, 1), value=-1),
    )
    scores = torch.where(nothing, torch.full_like(scores, 0.9), scores)
    return whole, scores, torch.where(nothing, labels * 0, labels), *others


def _lonely(results: tuple, *_: Any) -> tuple:
    found, scores, labels, *others = results
    several = (labels >= 0).sum(1, keepdim=True) > 1
    labels = torch.where(several, labels, -torch.ones_like(labels))
    return found & several[..., None, None], scores * several, labels, *others


planted('nothing found: masks of 0.9', PLAIN, (POST, result(_ghosts)))
planted('a single result is lost', V2, (POST, result(_lonely)))
planted(
    'padding has the label 0',
    V2,
    (POST, result(lambda right, *_: (right[0], right[1], right[2].clamp(min=0), *right[3:]))),
)
# --- raw outputs, what other runtimes read, and limits of candidates --------------------------------
planted(
    'raw: kernels of the level beside',
    V2,
    (
        f'{NETWORKS}:BatchedNetwork.forward',
        result(lambda right, *_: (right[0], right[1].roll(1, 1), *right[2:])),
    ),
    form='raw',
)
planted(
    'raw: scores before points NMS',
    V2,
    (f'{NETWORKS}:points_nms', traced(called(lambda original, logits: logits.sigmoid()))),
    form='raw',
)
for _name, _change in {
    'metadata: score threshold x 1.05': dict(score_thr=five_percent),
    'metadata: mask threshold x 1.05': dict(mask_thr=five_percent),
    'metadata: filter_thr x 1.05': dict(filter_thr=five_percent),
    'metadata: sigma x 1.05': dict(sigma=five_percent),
    'metadata: max_per_img 99': dict(max_per_img=one_less),
    'metadata: nms_pre 1 % less': dict(nms_pre=one_percent_less),
    'metadata: strides of 4 pixels less': dict(strides=lambda right: [stride - 4 for stride in right]),
    'metadata: masks of a fifth of the input': dict(mask_stride=lambda stride: stride + 1),
}.items():
    planted(_name, BOTH, (WRITTEN, settings(**_change)), form='raw')
NUMPY = 'mmdeploy_ext.families.solo.runtime'
planted(
    'numpy: masks are not cropped to img_shape',
    DECOUPLED,
    (f'{NUMPY}:resize_and_threshold', argument(1, lambda shape: np.zeros_like(shape))),
    form='raw',
)
planted(
    'numpy: no matrix NMS',
    V2,
    (f'{NUMPY}:matrix_decay', result(lambda factors, *_: np.ones_like(factors))),
    form='raw',
)
planted(
    'numpy: rows for columns',
    DECOUPLED,
    (f'{NUMPY}:lines', result(lambda right, *_: right[::-1])),
    form='raw',
)
CAPPED = dict(dynamic=False, max_candidates=400)
planted('capped: max_per_img 99', V2, thresholds(max_per_img=one_less), **CAPPED)
planted(
    'capped: a candidate fewer counts',
    V2,
    (POST, result(lambda right, *_: (*right[:3], right[3] - 1))),
    **CAPPED,
)
