"""Instance masks: matched by class and mask IoU, both engines drawn side by side."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.tasks import bbox2d
from mmdeploy_ext.spec import matching

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.runtime.detections import Instances
    from mmdeploy_ext.spec.matching import Pairing
    from mmdeploy_ext.spec.results import Pair

RESULTS, PLACE = 'masks', 'worst IoU'
half_bars, half_text = matching.overlap_bars, matching.overlap_text
IOU_BAR = 0.98
SCORE_BAR = 1e-3
"""Largest score difference of a pair in float32: scores are means over mask pixels."""
ONE_TO_ONE = dict(iou_bar=IOU_BAR, score_bar=1e-5, score_thr=0.0)
"""Arguments of `match_detections` for two programs on equal tensors."""
FLIPPED_PIXELS = 2
"""Overlapping masks with at most so many different pixels are equal."""
PIXELS_AT_ONCE = 1 << 14
"""Pixels of each mask per product, to fit the caches."""
PAIR_IOU = 0.5
"""Smallest IoU of one object outside the bars; below, a mask is missing and one extra."""


def problem(reference: Instances, candidate: Instances) -> str:
    """Return why results cannot be compared, or ''."""
    for side, results in (('reference', reference), ('candidate', candidate)):
        masks, scores, labels = results.masks, results.scores, results.labels
        if masks.ndim != 3 or len(masks) != len(scores) or labels.shape != (len(scores),):
            return (
                f'{side}: masks {masks.shape}, scores {scores.shape} and labels {labels.shape} do not match'
            )
        if bad := int((~np.isfinite(scores)).sum()):
            return f'{side}: {bad} instances have NaN or infinite scores'
    if reference.masks.shape[1:] != candidate.masks.shape[1:]:
        return f'masks: got {candidate.masks.shape[1:]} pixels, expected {reference.masks.shape[1:]}'
    return ''


def pair_up(
    reference: Instances, candidate: Instances, iou_bar: float = IOU_BAR, score_bar: float = SCORE_BAR
) -> Pairing:
    iou = class_iou(reference, candidate)
    return matching.pair_lists(reference, candidate, iou >= iou_bar, iou, PAIR_IOU, score_bar)


match_detections = functools.partial(
    matching.match_lists, problem=problem, pair_by=pair_up, score_thr=0.1, score_bar=SCORE_BAR
)
fit_pair = bbox2d.fit_pair
"""Resizes the image; `draw_pair` resizes the masks."""


def draw_pair(
    pair: Pair, classes: Sequence[str], score_thr: float = 0.3, *, pair_by: Callable[..., Pairing] = pair_up
) -> np.ndarray:
    from mmdeploy_ext.runtime.draw import draw_instances

    task: dict[str, Callable[..., Any]] = dict(draw=draw_instances, problem=problem, pair_by=pair_by)
    return bbox2d.side_by_side(pair, classes, score_thr, **task)


def class_iou(reference: Instances, candidate: Instances) -> np.ndarray:
    """Return the IoU (R, C) of all masks; -1 across classes.

    If both are uint8, the IoU is the sum of the smaller values by the sum of the larger.
    """
    graded = reference.masks.dtype == candidate.masks.dtype == np.uint8
    iou = np.full((len(reference), len(candidate)), -1.0)
    for label in np.intersect1d(reference.labels, candidate.labels):
        rows, columns = np.flatnonzero(reference.labels == label), np.flatnonzero(candidate.labels == label)
        masks, candidates = (
            side.masks[indices].astype(np.uint8 if graded else bool, copy=False).reshape(len(indices), -1)
            for side, indices in ((reference, rows), (candidate, columns))
        )
        if graded:
            overlap = np.array([np.minimum(mask, candidates).sum(1, np.float64) for mask in masks])
        else:
            overlap = _overlaps(masks, candidates)
        area = np.sum if graded else np.count_nonzero
        areas, candidate_areas = (
            np.array([area(mask) for mask in side], np.float64) for side in (masks, candidates)
        )
        union = areas[:, None] + candidate_areas[None] - overlap
        part = np.divide(overlap, union, out=np.ones_like(overlap), where=union > 0)
        part[(union - overlap <= FLIPPED_PIXELS) & (overlap > 0)] = 1.0
        iou[np.ix_(rows, columns)] = part
    return iou


def _overlaps(masks: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    overlap = np.zeros((len(masks), len(candidates)))
    for start in range(0, masks.shape[1], PIXELS_AT_ONCE):
        pixels = slice(start, start + PIXELS_AT_ONCE)
        overlap += masks[:, pixels].astype(np.float32) @ candidates[:, pixels].astype(np.float32).T
    return overlap
