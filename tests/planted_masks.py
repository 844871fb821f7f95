"""Faults of masks in the frame of boxes: Mask R-CNN, its two ways of pasting, and its boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from planted_boxes import (
    CLIP_SIZE,
    OF_CLIPPING,
    OF_SUPPRESSION,
    entry,
    first_of_batch,
    five_percent,
    one_less,
    one_percent_less,
    swapped,
)
from planted_two_stage import (
    LEVELS,
    POOL,
    box_coder,
    chosen,
    layer,
    of_boxes,
    of_proposals,
    proposal_facts,
    without_last_level,
)
from planting import argument, called, planted, result, settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from planting import Change

PARTS = 'mmdeploy_ext.families.parts'
PACKAGE = 'mmdeploy_ext.families.two_stage'
MASKS, LOGITS = f'{PACKAGE}.masks', f'{PARTS}.mask_heads'
STAGES = f'{LOGITS}:StagedMaskHeads.forward'
FORM, THRESHOLD = f'{MASKS}:Masks.forward', f'{PARTS}.mask_heads:threshold'
PASTE = 'mmdeploy_ext.families.parts.runtime.pasted_masks:paste'
IN_GRAPH = f'{PARTS}.pasting:Paste.forward'
WRITTEN = f'{PACKAGE}.family:TwoStageFamily.postprocess_facts'
FEEDS = 'mmdeploy_ext.families.parts.image_feeds:feeds_with_sizes'
TOY = 'mask_rcnn'


def masks_of(change: Callable) -> Change:
    """Return a fault of the masks (B, n, m, m) of a graph."""
    return FORM, result(lambda right, *_: (change(right[0]), *right[1:]))


def boxes_of_masks(change: Callable) -> Change:
    """Return a fault of the boxes (B, n, 4), pixels of the input, in which masks are looked for."""
    return STAGES, argument(2, change)


def pasted(change: Callable) -> Change:
    """Return a fault of pasting in numpy: of masks (n, m, m), boxes (n, 4), height, width, threshold."""
    return PASTE, called(lambda original, *given: original(*change(*given)))


def in_graph(place: int, change: Callable) -> Change:
    """Return a fault of pasting in the graph: of boxes (1), scale (2), size (3) or masks (4)."""
    return IN_GRAPH, argument(place, change)


def shifted(pixels: float) -> Callable:
    """Return what moves boxes (..., 4 or 5) to the right and down."""
    return lambda boxes: torch.cat([boxes[..., :4] + pixels, boxes[..., 4:]], -1)


# --- masks of regions -------------------------------------------------------------------------------
planted('mask threshold x 1.05', TOY, (THRESHOLD, result(lambda least, *_: least * 1.05)))
planted('mask threshold 0.45', TOY, (THRESHOLD, result(lambda least, *_: 0.45)))
planted(
    'mask threshold x 1.05 in the graph',
    TOY,
    (THRESHOLD, result(lambda least, *_: least * 1.05)),
    paste_masks=True,
)
planted(
    'masks of the next class',
    TOY,
    (FORM, argument(3, lambda labels: torch.where(labels >= 0, (labels + 1) % 6, labels))),
)
planted(
    'masks of the first class',
    TOY,
    (FORM, argument(3, lambda labels: torch.where(labels >= 0, labels * 0, labels))),
)
planted(
    'masks of the class of the detection beside',
    TOY,
    (f'{LOGITS}:predicted_class_only', argument(1, lambda labels: labels.roll(1, 0))),
)
planted('masks without a sigmoid', TOY, masks_of(lambda masks: torch.logit(masks, 1e-6).clamp(0, 1)))
planted('masks turned: rows and columns change places', TOY, masks_of(lambda masks: masks.transpose(2, 3)))
planted('masks mirrored', TOY, masks_of(lambda masks: masks.flip(3)))
planted('masks rounded to float16', TOY, masks_of(lambda masks: masks.half().float()))
planted('masks rounded to 1 / 16', TOY, masks_of(lambda masks: (masks * 16).round() / 16))
planted('masks of the detection beside', TOY, masks_of(lambda masks: masks.roll(1, 1)))
planted('masks of the first image', TOY, (POOL, argument(3, lambda images: images * 0)))
planted('masks of boxes in pixels of the original', TOY, (FORM, argument(4, torch.ones_like)))
planted('masks of boxes that are scaled as h w h w', TOY, (FORM, argument(4, swapped)))
planted('masks of boxes with the scale of the first image', TOY, (FORM, argument(4, first_of_batch)))
planted('masks of boxes that are a pixel off', TOY, boxes_of_masks(shifted(1.0)))
planted('masks of boxes of whole pixels', TOY, boxes_of_masks(torch.round))
planted(
    'masks of boxes 10 % wider',
    TOY,
    boxes_of_masks(lambda boxes: boxes + (boxes - boxes[..., [2, 3, 0, 1]]) * 0.05),
)
planted('regions of masks: not aligned', TOY, layer(aligned=lambda right: False))
planted('regions of masks: sampling ratio 2', TOY, layer(sampling_ratio=lambda right: 2))
planted('regions: the last level is left out', TOY, (LEVELS, result(lambda levels, *_: levels.clamp(max=2))))
planted(
    'regions: the last level is left out, in a file of one size',
    TOY,
    (LEVELS, result(lambda levels, *_: levels.clamp(max=2))),
    dynamic=False,
)
planted('regions: the first level is left out', TOY, (LEVELS, result(lambda levels, *_: levels.clamp(min=1))))
planted(
    'only the first 20 detections have masks',
    TOY,
    masks_of(lambda masks: masks * (torch.arange(masks.shape[1]) < 20)[:, None, None]),
)
# --- pasting ----------------------------------------------------------------------------------------
planted(
    'pasting: boxes of whole pixels', TOY, pasted(lambda masks, boxes, *rest: (masks, boxes.round(), *rest))
)
planted('pasting: half a pixel off', TOY, pasted(lambda masks, boxes, *rest: (masks, boxes + 0.5, *rest)))
planted(
    'pasting: boxes are a pixel wider, as in mmdet 1.x',
    TOY,
    pasted(lambda masks, boxes, *rest: (masks, boxes + np.float32([0, 0, 1, 1]), *rest)),
)
planted(
    'pasting: the nearest cell',
    TOY,
    pasted(lambda masks, boxes, *rest: (np.where(masks >= 0.5, np.float32(1), np.float32(0)), boxes, *rest)),
)
planted(
    'pasting: the mask as large as the box without its edge cells',
    TOY,
    pasted(lambda masks, boxes, *rest: (masks[:, 1:-1, 1:-1], boxes, *rest)),
)


def _last_line_lost(whole: np.ndarray, *_: Any) -> np.ndarray:
    whole[:, -1:] = False
    return whole


planted('pasting: the last line of the image is left out', TOY, (PASTE, result(_last_line_lost)))
planted('pasting in the graph: boxes of whole pixels', TOY, in_graph(1, torch.round), paste_masks=True)
planted('pasting in the graph: half a pixel off', TOY, in_graph(1, shifted(0.5)), paste_masks=True)
planted('pasting in the graph: height and width change places', TOY, in_graph(3, swapped), paste_masks=True)
planted(
    'pasting in the graph: the size of the first image', TOY, in_graph(3, first_of_batch), paste_masks=True
)
planted(
    'pasting in the graph: the last image has no masks',
    TOY,
    in_graph(4, lambda masks: masks * (torch.arange(masks.shape[0]) < 2)[:, None, None, None]),
    paste_masks=True,
)
# --- what boxes hand over ---------------------------------------------------------------------------
planted('score threshold x 1.05', TOY, of_boxes(score_thr=five_percent))
planted('IoU threshold x 1.05', TOY, of_boxes(iou_threshold=five_percent))
planted('max_per_img 99', TOY, of_boxes(max_per_img=one_less))
planted('suppression across classes', TOY, of_boxes(class_agnostic=lambda right: True))
planted("a coder's deviation", TOY, box_coder(stds=lambda stds: [*stds[:2], stds[2] * 1.05, stds[3]]))
planted('proposals: nms_pre 297', TOY, of_proposals(nms_pre=one_percent_less))
planted('proposals: max_per_img 99', TOY, of_proposals(max_per_img=one_less))
planted('proposals: no bound of sizes', TOY, proposal_facts(coder=entry(wh_ratio_clip=lambda ratio: 1e-9)))
planted(
    'proposals: clipped a pixel inside the border',
    TOY,
    proposal_facts(head=entry(clip_inset=lambda inset: 1.0)),
)
planted(
    'proposals: the last level is left out',
    TOY,
    ('mmdeploy_ext.families.parts.proposals:Proposals.forward', called(without_last_level)),
)
planted('proposals: of the first image', TOY, chosen(first_of_batch, first_of_batch))
planted('img_shape left out', TOY, (CLIP_SIZE, argument(1, lambda shape: shape * 0)))
for _name, _change in (OF_SUPPRESSION | OF_CLIPPING).items():
    planted(_name, TOY, _change)
planted(
    'the original has the size of the first image',
    TOY,
    (FEEDS, settings(ori_shape=lambda size: np.broadcast_to(size[:1], size.shape))),
)
planted(
    'a single result is lost, with its mask',
    TOY,
    (
        f'{PACKAGE}.graphs:TwoStageFullForm.forward',
        result(
            lambda found, *_: tuple(
                one * ((found[1] >= 0).sum(1) > 1).reshape(-1, *[1] * (one.dim() - 1)).to(one.dtype)
                for one in found
            )
        ),
    ),
)
