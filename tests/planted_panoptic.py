"""Faults of panoptic maps: Panoptic FPN and Mask2Former, as graphs and by the fusion in numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from planted_boxes import CLIP_SIZE, OF_CLIPPING, first_of_batch, five_percent
from planted_masks import FORM as MASKS_FORM
from planted_masks import IN_GRAPH, masks_of, shifted
from planted_two_stage import LEVELS, POOL, layer, of_boxes, of_proposals, without_last_level
from planting import argument, called, planted, result, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from planting import Change

FUSION = 'mmdeploy_ext.exporting.postprocess.panoptic'
INSTANCES, QUERIES = f'{FUSION}:InstanceFusion.forward', f'{FUSION}:QueryFusion.forward'
IDS, PIXELS = f'{FUSION}:ids_of', f'{FUSION}:pixels'
RESIZING = 'mmdeploy_ext.exporting.postprocess.mask_resize:resizing_of'
FPN, FORMER, BOTH = 'panoptic_fpn', 'mask2former_panoptic', 'panoptic_fpn mask2former_panoptic'
FPN_PACKAGE, FORMER_PACKAGE = (
    'mmdeploy_ext.families.two_stage.panoptic',
    'mmdeploy_ext.families.query.masks',
)


def fpn_facts(**changes: Callable) -> Change:
    """Return a fault of the settings of the fusion of Panoptic FPN."""
    return f'{FPN_PACKAGE}:facts_of', settings(**changes)


def former_facts(**changes: Callable) -> Change:
    """Return a fault of the settings of the fusion of Mask2Former."""
    return f'{FORMER_PACKAGE}:facts_of', settings(**changes)


def maps(place: str, change: Callable) -> Change:
    """Return a fault of the map (B, h, w) int32 that a fusion gives."""
    return place, result(lambda panoptic, *_: change(panoptic).to(torch.int32))


def ids_from_8(panoptic: torch.Tensor) -> torch.Tensor:
    """Return a map whose things are numbered from 8 on."""
    return torch.where(panoptic >= 1000, panoptic + 7000, panoptic)


def ids_in_reverse(panoptic: torch.Tensor) -> torch.Tensor:
    """Return a map whose things are numbered in the reverse order."""
    most = panoptic.flatten(1).amax(1)[:, None, None] // 1000
    numbers = panoptic // 1000
    return torch.where(panoptic >= 1000, panoptic + (most + 1 - 2 * numbers) * 1000, panoptic)


# --- Panoptic FPN -----------------------------------------------------------------------------------
CLASSES = 11
planted('ids from 8 on', FPN, maps(INSTANCES, ids_from_8))
planted(
    'ids from 0 on',
    FPN,
    maps(INSTANCES, lambda panoptic: torch.where(panoptic >= 1000, panoptic - 1000, panoptic)),
)
planted('ids in the reverse order', FPN, maps(INSTANCES, ids_in_reverse))
planted(
    'ids of stuff, too',
    FPN,
    maps(
        INSTANCES,
        lambda panoptic: torch.where((panoptic < 1000) & (panoptic != CLASSES), panoptic + 1000, panoptic),
    ),
)
planted(
    '255 where there is no segment',
    FPN,
    maps(
        INSTANCES, lambda panoptic: torch.where(panoptic == CLASSES, torch.full_like(panoptic, 255), panoptic)
    ),
)
planted(
    '1011 where there is no segment',
    FPN,
    maps(INSTANCES, lambda panoptic: torch.where(panoptic == CLASSES, panoptic + 1000, panoptic)),
)
planted(
    '0 where there is no segment',
    FPN,
    maps(INSTANCES, lambda panoptic: torch.where(panoptic == CLASSES, panoptic * 0, panoptic)),
)
planted('overlap x 1.05', FPN, fpn_facts(mask_overlap=five_percent))
planted('overlap 0.8', FPN, fpn_facts(mask_overlap=lambda most: 0.8))
planted('areas of stuff x 1.05', FPN, fpn_facts(stuff_area_limit=lambda least: round(least * 1.05)))
planted('areas of stuff twice as large', FPN, fpn_facts(stuff_area_limit=lambda least: 2 * least))
planted('areas of stuff: no limit', FPN, fpn_facts(stuff_area_limit=lambda least: 0))
planted('mask threshold x 1.05', FPN, fpn_facts(mask_thr=five_percent))
planted('stuff begins a class early', FPN, fpn_facts(num_things=lambda count: count - 1))
planted(
    'the last instance on top',
    FPN,
    (
        INSTANCES,
        called(
            lambda original, self, masks, labels, *rest: original(self, masks.flip(1), labels.flip(1), *rest)
        ),
    ),
)
planted('labels of instances a class off', FPN, (INSTANCES, argument(2, lambda labels: (labels + 1) % 6)))
planted('instances without their masks', FPN, (INSTANCES, argument(1, torch.zeros_like)))
planted('stuff: the class beside', FPN, (INSTANCES, argument(3, lambda semantic: semantic.roll(1, 1))))
planted('stuff: no stuff is none', FPN, (INSTANCES, argument(3, lambda semantic: semantic[:, :-1])))
planted('stuff of the first image', FPN, (INSTANCES, argument(3, first_of_batch)))
planted('stuff a pixel off', FPN, (INSTANCES, argument(3, lambda semantic: semantic.roll(1, 3))))
planted('stuff: areas by boxes', FPN, (PIXELS, result(lambda areas, *_: areas * 1.3)))
planted('stuff: padding not cut', FPN, (RESIZING, argument(1, lambda shape: shape * 0)))
planted('stuff: content of the first image', FPN, (RESIZING, argument(1, first_of_batch)))
planted(
    'stuff: half of the resolution',
    FPN,
    (
        f'{FPN_PACKAGE}:PanopticNetwork.head_outputs',
        result(lambda right, *_: [*right[:-1], _halved(right[-1])]),
    ),
)


def _halved(logits: torch.Tensor) -> torch.Tensor:
    """Return logits whose pixels of two by two are the mean of the four."""
    mean = torch.nn.functional.avg_pool2d(logits, 2)
    return mean.repeat_interleave(2, 2).repeat_interleave(2, 3)


planted('pasting: half a pixel off', FPN, (IN_GRAPH, argument(1, shifted(0.5))))
planted('pasting: boxes of whole pixels', FPN, (IN_GRAPH, argument(1, torch.round)))
planted('pasting: x and y change places', FPN, (IN_GRAPH, argument(1, lambda xyxy: xyxy[..., [1, 0, 3, 2]])))
planted(
    'masks of the next class',
    FPN,
    (MASKS_FORM, argument(3, lambda labels: torch.where(labels >= 0, (labels + 1) % 6, labels))),
)
planted('masks of the detection beside', FPN, masks_of(lambda masks: masks.roll(1, 1)))
planted('masks of the first image', FPN, (POOL, argument(3, lambda images: images * 0)))
planted('regions: not aligned', FPN, layer(aligned=lambda right: False))
planted('regions: the last level is left out', FPN, (LEVELS, result(lambda levels, *_: levels.clamp(max=2))))
planted(
    'regions: the last level is left out, in a file of one size',
    FPN,
    (LEVELS, result(lambda levels, *_: levels.clamp(max=2))),
    dynamic=False,
)
planted(
    'proposals: the last level is left out',
    FPN,
    ('mmdeploy_ext.families.parts.proposals:Proposals.forward', called(without_last_level)),
)
planted('proposals: max_per_img 50', FPN, of_proposals(max_per_img=lambda most: 50))
planted('score threshold x 1.05', FPN, of_boxes(score_thr=five_percent))
planted('score threshold x 0.8', FPN, of_boxes(score_thr=lambda least: least * 0.8))
planted('IoU threshold x 1.05', FPN, of_boxes(iou_threshold=five_percent))
planted('suppression within classes', FPN, of_boxes(class_agnostic=lambda right: False))
planted('max_per_img 4', FPN, of_boxes(max_per_img=lambda most: 4))
planted('img_shape left out', FPN, (CLIP_SIZE, argument(1, lambda shape: shape * 0)))
for _name, _change in OF_CLIPPING.items():
    planted(_name, FPN, _change)


def _ghost(panoptic: torch.Tensor, self: Any, masks: Any, labels: Any, *_: Any) -> torch.Tensor:
    nothing = (
        (labels < 0).all(1)[:, None, None] if labels.shape[1] else torch.ones_like(panoptic[:, :1, :1]) > 0
    )
    return torch.where(nothing, torch.full_like(panoptic, 1000), panoptic)


planted('no instances: a thing as large as the image', FPN, (INSTANCES, result(_ghost)))
planted(
    'a single instance is lost',
    FPN,
    (
        INSTANCES,
        called(
            lambda original, self, masks, labels, *rest: original(
                self, masks & ((labels >= 0).sum(1) > 1)[:, None, None, None], labels, *rest
            )
        ),
    ),
)
# --- Mask2Former ------------------------------------------------------------------------------------
FORMER_CLASSES = 6
planted('Mask2Former: ids from 8 on', FORMER, maps(QUERIES, ids_from_8))
planted('Mask2Former: ids in the reverse order', FORMER, maps(QUERIES, ids_in_reverse))
planted(
    'Mask2Former: ids of stuff, too',
    FORMER,
    maps(
        QUERIES,
        lambda panoptic: torch.where(
            (panoptic < 1000) & (panoptic != FORMER_CLASSES), panoptic + 1000, panoptic
        ),
    ),
)
planted(
    'Mask2Former: 255 where there is no segment',
    FORMER,
    maps(
        QUERIES,
        lambda panoptic: torch.where(panoptic == FORMER_CLASSES, torch.full_like(panoptic, 255), panoptic),
    ),
)
planted(
    'Mask2Former: 1006 where there is no segment',
    FORMER,
    maps(QUERIES, lambda panoptic: torch.where(panoptic == FORMER_CLASSES, panoptic + 1000, panoptic)),
)
planted('Mask2Former: IoU threshold x 1.05', FORMER, former_facts(iou_thr=five_percent))
planted('Mask2Former: IoU threshold x 0.8', FORMER, former_facts(iou_thr=lambda least: least * 0.8))
planted('Mask2Former: no IoU threshold', FORMER, former_facts(iou_thr=lambda least: 0.0))
planted('Mask2Former: score threshold x 1.05', FORMER, former_facts(object_mask_thr=five_percent))
planted('Mask2Former: no score threshold', FORMER, former_facts(object_mask_thr=lambda least: 0.0))
planted(
    'Mask2Former: low scores are not filtered', FORMER, former_facts(filter_low_score=lambda right: False)
)
planted('Mask2Former: stuff taken for things', FORMER, former_facts(num_things=lambda count: FORMER_CLASSES))
planted('Mask2Former: a thing fewer', FORMER, former_facts(num_things=lambda count: count - 1))
planted('Mask2Former: things not told apart', FORMER, (IDS, called(lambda original, labels, *_: labels)))
planted('Mask2Former: rejected queries are numbered, too', FORMER, (IDS, argument(1, torch.ones_like)))
planted(
    'Mask2Former: classes beside', FORMER, (IDS, argument(0, lambda labels: (labels + 1) % FORMER_CLASSES))
)
planted(
    'Mask2Former: scores by a sigmoid',
    FORMER,
    (
        QUERIES,
        argument(1, lambda logits: torch.cat([logits[..., :-1], torch.zeros_like(logits[..., -1:])], 2)),
    ),
)
planted('Mask2Former: masks beyond 0.1', FORMER, (QUERIES, argument(2, lambda values: values - 0.1)))
planted(
    'Mask2Former: masks of the query beside', FORMER, (QUERIES, argument(2, lambda values: values.roll(1, 1)))
)
planted(
    'Mask2Former: the surest query by its mask alone',
    FORMER,
    (QUERIES, called(lambda original, self, logits, values: original(self, logits, values * 8))),
)
planted('Mask2Former: padding not cut', FORMER, (RESIZING, argument(1, lambda shape: shape * 0)))
planted('Mask2Former: content of the first image', FORMER, (RESIZING, argument(1, first_of_batch)))
planted(
    'Mask2Former: masks a cell off',
    FORMER,
    (RESIZING, result(lambda right, *_: (right[0].roll(1, 2), right[1]))),
)
planted(
    'Mask2Former: areas of pixels',
    FORMER,
    (PIXELS, result(lambda areas, *_: areas * (1 + 0.2 * (areas > 2000)))),
)
# --- the fusion in numpy ----------------------------------------------------------------------------
NUMPY = 'mmdeploy_ext.runtime.panoptic'


def _numpy_ids(panoptic: np.ndarray, *_: Any) -> np.ndarray:
    return np.where(panoptic >= 1000, panoptic + 7000, panoptic)


planted('numpy: ids from 8 on', FPN, (f'{NUMPY}:fuse_instances', result(_numpy_ids)), form='raw')
planted('numpy: ids from 8 on', FORMER, (f'{NUMPY}:fuse_queries', result(_numpy_ids)), form='raw')
planted(
    'numpy: the last instance on top',
    FPN,
    (
        f'{NUMPY}:fuse_instances',
        called(lambda original, masks, labels, *rest: original(masks[::-1], labels[::-1], *rest)),
    ),
    form='raw',
)
planted(
    'numpy: padding not cut',
    BOTH,
    (f'{NUMPY}:resized', argument(1, lambda shape: np.zeros_like(shape))),
    form='raw',
)
planted(
    'metadata: overlap x 1.05',
    FPN,
    (
        'mmdeploy_ext.families.two_stage.family:TwoStagePanopticFamily.postprocess_facts',
        settings(mask_overlap=five_percent),
    ),
    form='raw',
)
planted(
    'metadata: areas of stuff twice as large',
    FPN,
    (
        'mmdeploy_ext.families.two_stage.family:TwoStagePanopticFamily.postprocess_facts',
        settings(stuff_area_limit=lambda least: 2 * least),
    ),
    form='raw',
)
planted(
    'metadata: IoU threshold x 1.05',
    FORMER,
    (
        'mmdeploy_ext.families.query.family:QueryPanopticFamily.postprocess_facts',
        settings(iou_thr=five_percent),
    ),
    form='raw',
)
