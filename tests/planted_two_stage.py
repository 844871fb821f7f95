"""Faults of two-stage detectors: proposals, levels of regions, box heads, cascades, both graphs of a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from planted_boxes import (
    CLIP_SIZE,
    OF_CLIPPING,
    OF_PRIORS,
    OF_SUPPRESSION,
    entry,
    first_of_batch,
    five_percent,
    frozen_limit,
    one_less,
    one_more,
    one_percent_less,
    swapped,
    wider,
)
from planting import argument, called, planted, result, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from planting import Change

PARTS = 'mmdeploy_ext.families.parts'
PACKAGE = 'mmdeploy_ext.families.two_stage'
PROPOSALS, PROPOSALS_FORM = f'{PARTS}.proposals', f'{PARTS}.proposals:Proposals.forward'
BOXES, REGIONS = f'{PACKAGE}.boxes', f'{PARTS}.regions'
LEVELS, FEATURES, POOL = f'{REGIONS}:Pool.levels', f'{REGIONS}:Regions.features', f'{REGIONS}:Pool.forward'
POOL_LEVEL = 'mmdeploy_ext.exporting.ops.roi_align:pool_level'
WRITTEN = f'{PACKAGE}.family:TwoStageFamily.postprocess_facts'


def of_proposals(**changes: Callable) -> Change:
    """Return a fault of what `test_cfg.rpn` decides."""
    return f'{PROPOSALS}:thresholds', settings(**changes)


def of_boxes(**changes: Callable) -> Change:
    """Return a fault of what `test_cfg.rcnn` decides."""
    return f'{BOXES}:thresholds', settings(**changes)


def proposal_facts(**changes: Callable) -> Change:
    """Return a fault of what proposals are decoded by."""
    return f'{PROPOSALS}:facts_of', settings(**changes)


def box_coder(**changes: Callable) -> Change:
    """Return a fault of the coder of box heads."""
    return f'{PARTS}.regions:coder_of', settings(**changes)


def layer(**changes: Callable) -> Change:
    """Return a fault of RoIAlign: attribute of mmcv's layer -> change of its value."""

    def wrong(original: Callable, *given: Any) -> torch.Tensor:
        *tensors, level, module, constant = given
        values = {name: getattr(module, name) for name in ('aligned', 'sampling_ratio', 'spatial_scale')}
        values |= {name: change(values[name]) for name, change in changes.items()}
        copy = type(module)(
            module.output_size, values['spatial_scale'], values['sampling_ratio'], 'avg', values['aligned']
        )
        return original(*tensors, level, copy, constant)

    return POOL_LEVEL, called(wrong)


def chosen(dets: Callable = lambda dets: dets, levels: Callable = lambda levels: levels) -> Change:
    """Return a fault of the proposals of a batch, (B, K, 5), and their levels (B, K)."""
    return PROPOSALS_FORM, result(lambda right, *_: (dets(right[0]), levels(right[1]), *right[2:]))


def without_last_level(original: Callable, self: Any, maps: Any, *rest: Any) -> Any:
    """Make the logits of the last level of the proposal network small."""
    count = len(maps) // len(self.kinds)
    maps = [one - 100 if place == count - 1 else one for place, one in enumerate(maps)]
    return original(self, maps, *rest)


BOTH = 'faster_rcnn cascade_rcnn'
# --- proposals --------------------------------------------------------------------------------------
planted('proposals: nms_pre 297', 'faster_rcnn', of_proposals(nms_pre=one_percent_less))
planted('proposals: nms_pre 100', 'faster_rcnn', of_proposals(nms_pre=lambda most: 100))
planted('proposals: max_per_img 99', 'faster_rcnn', of_proposals(max_per_img=one_less))
planted('proposals: max_per_img 101', 'faster_rcnn', of_proposals(max_per_img=one_more))
planted('proposals: max_per_img 60', 'faster_rcnn', of_proposals(max_per_img=lambda most: 60))
planted('proposals: IoU threshold x 1.05', BOTH, of_proposals(iou_threshold=five_percent))
planted(
    'proposals: suppression across levels', 'faster_rcnn', of_proposals(class_agnostic=lambda right: True)
)
planted(
    'proposals: sides of 8 pixels at least',
    'faster_rcnn',
    (f'{PROPOSALS}:smallest_side', result(lambda side, *_: 8.0)),
)
planted(
    'proposals: sides of 1 pixel at least',
    'faster_rcnn',
    (f'{PROPOSALS}:smallest_side', result(lambda side, *_: 1.0)),
)
planted(
    'proposals: sides of a literal 0 pixels',
    'faster_rcnn',
    (f'{PROPOSALS}:smallest_side', result(lambda side, *_: 0.0)),
)
planted("proposals: a coder's deviation", 'faster_rcnn', proposal_facts(coder=entry(stds=wider)))
planted(
    'proposals: no bound of sizes', 'faster_rcnn', proposal_facts(coder=entry(wh_ratio_clip=lambda r: 1e-9))
)
planted(
    'proposals: sizes bounded by e^0.7',
    'faster_rcnn',
    proposal_facts(coder=entry(wh_ratio_clip=lambda r: 0.5)),
)
planted('proposals: not clipped', 'faster_rcnn', proposal_facts(clip=lambda right: False))
planted(
    'proposals: clipped a pixel inside the border, as in mmdet 1.x',
    'faster_rcnn',
    proposal_facts(head=entry(clip_inset=lambda inset: 1.0)),
)
planted('proposals: the last level is left out', BOTH, (PROPOSALS_FORM, called(without_last_level)))
planted('proposals: of the first image', 'faster_rcnn', chosen(first_of_batch, first_of_batch))
planted('proposals: rounded to whole pixels', 'faster_rcnn', chosen(torch.round))
planted('proposals: padding counts', 'faster_rcnn', chosen(levels=lambda levels: levels.clamp(min=0)))
planted(
    'proposals: the best is left out',
    'faster_rcnn',
    chosen(
        levels=lambda levels: torch.where(
            torch.arange(levels.shape[1]) == 0, -torch.ones_like(levels), levels
        )
    ),
)
planted('proposals: as many of a level as the traced size has', 'faster_rcnn', frozen_limit)
planted(
    'proposals: clipped to the padded input',
    'faster_rcnn',
    (PROPOSALS_FORM, argument(2, lambda size: size + 64)),
)
# --- regions ----------------------------------------------------------------------------------------
planted('regions: not aligned', BOTH, layer(aligned=lambda right: False))
planted('regions: sampling ratio 2', BOTH, layer(sampling_ratio=lambda right: 2))
planted('regions: scale of a map 2 % off', 'faster_rcnn', layer(spatial_scale=lambda scale: scale * 1.02))
planted(
    'regions: the last level is left out',
    BOTH,
    (LEVELS, result(lambda levels, *_: levels.clamp(max=2))),
)
planted(
    'regions: the first level is left out',
    'faster_rcnn',
    (LEVELS, result(lambda levels, *_: levels.clamp(min=1))),
)
planted(
    'regions: the level of boxes that are a pixel wider, as in mmdet 1.x',
    'faster_rcnn',
    (LEVELS, argument(1, lambda boxes: boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))),
)
planted(
    'regions: the level of the longer side',
    'faster_rcnn',
    (
        LEVELS,
        argument(
            1,
            lambda boxes: torch.cat(
                [boxes[:, :2], boxes[:, :2] + (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True)], 1
            ),
        ),
    ),
)
planted('regions: maps of the first image', BOTH, (POOL, argument(3, lambda images: images * 0)))
planted(
    'regions: a pixel wider',
    'faster_rcnn',
    (POOL, argument(2, lambda boxes: boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))),
)
planted(
    'regions: rows and columns of cells change places',
    'faster_rcnn',
    (POOL, result(lambda pooled, *_: pooled.transpose(2, 3))),
)
# --- box heads --------------------------------------------------------------------------------------
planted('score threshold x 1.05', BOTH, of_boxes(score_thr=five_percent))
planted('IoU threshold x 1.05', BOTH, of_boxes(iou_threshold=five_percent))
planted('suppression across classes', BOTH, of_boxes(class_agnostic=lambda right: True))
planted('max_per_img 99', BOTH, of_boxes(max_per_img=one_less))
planted('max_per_img 101', BOTH, of_boxes(max_per_img=one_more))
planted("a coder's deviation", BOTH, box_coder(stds=lambda stds: [*stds[:2], stds[2] * 1.05, stds[3]]))
planted('box sizes bounded by e^0.1', 'faster_rcnn', box_coder(wh_ratio_clip=lambda ratio: 0.9))
planted('no bound of box sizes', BOTH, box_coder(wh_ratio_clip=lambda ratio: 1e-9))
ACTIVATED, DECODED = f'{BOXES}:activated', f'{PARTS}.regions:decoded'
planted(
    'the background first',
    'faster_rcnn',
    (ACTIVATED, called(lambda original, head, logits: logits.softmax(-1)[..., 1:])),
)
planted(
    'softmax without the background',
    'faster_rcnn',
    (ACTIVATED, called(lambda original, head, logits: logits[..., :-1].softmax(-1))),
)
planted(
    'scores by a sigmoid',
    'faster_rcnn',
    (ACTIVATED, called(lambda original, head, logits: logits[..., :-1].sigmoid())),
)
planted(
    'the box of the next class',
    'faster_rcnn',
    (DECODED, result(lambda right, *_: (right[0].roll(1, 2), right[1]))),
)
planted(
    'the box of the first class',
    'faster_rcnn',
    (DECODED, result(lambda right, *_: (right[0][:, :, :1].expand_as(right[0]), right[1]))),
)
planted(
    'boxes end a pixel early, as in mmdet 1.x',
    'faster_rcnn',
    (DECODED, result(lambda right, *_: (right[0] - right[0].new_tensor([0.0, 0.0, 1.0, 1.0]), right[1]))),
)
planted('scale_factor as h w h w', 'faster_rcnn', (f'{BOXES}:Boxes.forward', argument(5, swapped)))
planted(
    'scale_factor of the first image', 'faster_rcnn', (f'{BOXES}:Boxes.forward', argument(5, first_of_batch))
)
planted('img_shape left out', BOTH, (CLIP_SIZE, argument(1, lambda shape: shape * 0)))
planted(
    'without img_shape boxes are clipped to 320',
    'faster_rcnn',
    (
        CLIP_SIZE,
        called(lambda original, image, shape: torch.where(shape > 0, shape, torch.full_like(shape, 320.0))),
    ),
)
for _name, _change in (OF_SUPPRESSION | OF_CLIPPING | OF_PRIORS).items():
    planted(_name, 'faster_rcnn', _change)


def alone(original: Callable, self: Any, *given: Any, **more: Any) -> Any:
    """Give the scores of the stages before the last one no weight: zeros in place of them."""
    hooks = [
        stage.register_forward_hook(lambda _, __, found: (found[0] * 0, *found[1:]))
        for stage in list(self.stages)[:-1]
    ]
    try:
        return original(self, *given, **more)
    finally:
        for hook in hooks:
            hook.remove()


planted('the scores of the last stage alone', 'cascade_rcnn', (f'{BOXES}:Boxes.forward', called(alone)))
planted(
    'boxes that no stage moves',
    'cascade_rcnn',
    (
        DECODED,
        called(
            lambda original, head, regions, outputs, *size: (
                regions[:, :, None].expand_as(original(head, regions, outputs, *size)[0]),
                None,
            )
        ),
    ),
)
planted('soft suppression: scores do not fall', 'soft_rcnn', of_boxes(method=lambda right: 'naive'))
planted('soft suppression: scores fall by a bell', 'soft_rcnn', of_boxes(method=lambda right: 'gaussian'))
planted('soft suppression: another least score', 'soft_rcnn', of_boxes(min_score=lambda least: 0.1))
planted('soft suppression: least score x 1.05', 'soft_rcnn', of_boxes(min_score=five_percent))
planted('soft suppression: IoU threshold x 1.05', 'soft_rcnn', of_boxes(iou_threshold=five_percent))
planted('soft suppression: max_per_img 99', 'soft_rcnn', of_boxes(max_per_img=one_less))
# --- constant shapes, and both graphs of a pair -----------------------------------------------------
CAPPED = dict(dynamic=False, max_proposals=400, max_candidates=300)
SORTED = 'mmdeploy_ext.exporting.ops.nms:nms_of_sorted'
planted('capped: IoU thresholds x 1.05', 'faster_rcnn', (SORTED, argument(1, five_percent)), **CAPPED)
planted(
    'capped: regions of a level as points of the next',
    'faster_rcnn',
    (LEVELS, result(lambda levels, *_: (levels + 1).clamp(max=3))),
    **CAPPED,
)
planted(
    'capped: a proposal fewer counts',
    'faster_rcnn',
    (f'{PROPOSALS}:needed', result(lambda count, *_: count - 1)),
    **CAPPED,
)
SPLIT = 'mmdeploy_ext.families.two_stage.graphs'
planted(
    'two graphs: proposals in another order',
    'faster_rcnn',
    (f'{SPLIT}:ProposalsForm.forward', result(lambda right, *_: (right[0].flip(1),))),
    form='proposals',
)
planted(
    'two graphs: a proposal fewer',
    'faster_rcnn',
    (f'{SPLIT}:ProposalsForm.forward', result(lambda right, *_: (right[0][:, :-1],))),
    form='proposals',
)
planted('two graphs: nms_pre 297', 'faster_rcnn', of_proposals(nms_pre=one_percent_less), form='proposals')
planted(
    'two graphs: proposals with an area of zero count',
    'faster_rcnn',
    (
        f'{PACKAGE}.graphs:with_area',
        called(lambda original, boxes: (boxes[..., 2:] >= boxes[..., :2]).all(2)),
    ),
    form='regions',
)
planted(
    'two graphs: IoU threshold x 1.05', 'faster_rcnn', of_boxes(iou_threshold=five_percent), form='regions'
)
