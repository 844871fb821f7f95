"""Boxes with masks: a pair must agree in both."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.runtime.tasks import bbox2d, mask
from mmdeploy_ext.spec import matching

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Instances
    from mmdeploy_ext.spec.matching import Pairing

RESULTS, PLACE = 'masks', 'worst IoU'
half_bars, half_text = matching.overlap_bars, matching.overlap_text
fit_pair = bbox2d.fit_pair
ONE_TO_ONE = dict(mask.ONE_TO_ONE, box_bar=bbox2d.ONE_TO_ONE['iou_bar'])
"""Arguments of `match_detections` for two programs on equal tensors."""
SAME_LOGITS_SCORE_BAR = bbox2d.SAME_LOGITS_SCORE_BAR
SLIVER = 1.0
"""Pixels."""
SLIVER_IOU = 0.95
"""Smallest mask IoU if the box is a sliver."""


def pair_up(
    reference: Instances,
    candidate: Instances,
    iou_bar: float = mask.IOU_BAR,
    score_bar: float = bbox2d.SCORE_BAR,
    box_bar: float | None = None,
) -> Pairing:
    """Pair two lists one to one, within a class; nearness is the smaller IoU of boxes and masks.

    - `iou_bar`: smallest IoU of masks; at most `SLIVER_IOU` for a sliver of a box.
    - `score_bar`: largest difference of scores, and of mask scores.
    - `box_bar`: smallest IoU of boxes; None: `bbox2d.IOU_BAR` in float32, else `iou_bar`.
    """
    boxes, masks = bbox2d.class_iou(reference, candidate), mask.class_iou(reference, candidate)
    if box_bar is None:
        box_bar = bbox2d.IOU_BAR if iou_bar >= mask.IOU_BAR else iou_bar
    sides = reference.bboxes_xyxy[:, 2:] - reference.bboxes_xyxy[:, :2]
    mask_bars = np.where(sides.min(1, initial=np.inf) < SLIVER, min(iou_bar, SLIVER_IOU), iou_bar)
    near = (boxes >= box_bar) & (masks >= mask_bars[:, None])
    mask_scores = [
        np.zeros(len(side), np.float32) if side.mask_scores is None else side.mask_scores
        for side in (reference, candidate)
    ]
    gaps = [('mask score', matching.score_gaps(*mask_scores), score_bar)]
    nearness = np.minimum(boxes, masks)
    return matching.pair_lists(reference, candidate, near, nearness, mask.PAIR_IOU, score_bar, gaps)


match_detections = functools.partial(
    mask.match_detections, score_thr=0.05, score_bar=bbox2d.SCORE_BAR, pair_by=pair_up
)
draw_pair = functools.partial(mask.draw_pair, pair_by=pair_up)
