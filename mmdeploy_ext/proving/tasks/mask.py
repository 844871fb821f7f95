"""Level 3 of a proof for instance masks: match by class and mask IoU, draw both engines side by side.

The reference is PyTorch, the candidate an engine; bars are the limits that a matched pair keeps. Glossary: R
reference instances (rows), C candidate instances (columns), P pixels.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proving.tasks import bbox2d, matching

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.proving.results import Pair
    from mmdeploy_ext.proving.tasks.matching import Pairing
    from mmdeploy_ext.runtime.detections import Instances

RESULTS, PLACE = 'masks', 'worst IoU'
"""Titles of columns in tables: number of results, and `DetectionRow.worst_iou`."""
half_bars, half_text = matching.overlap_bars, matching.overlap_text
IOU_BAR = 0.995
"""Smallest mask IoU of a matched pair."""
SCORE_BAR = 1e-3
"""Largest score difference of a matched pair."""
FLIPPED_PIXELS = 2
"""Masks that differ in no more pixels have IoU 1: a value at the threshold may round to either side."""
PIXELS_AT_ONCE = 1 << 14
"""Number of pixels of masks that are multiplied at once: their copies in float32 stay in the caches."""
PAIR_IOU = 0.5
"""Masks outside the bars are shown as a (failing) pair from this IoU on; below they are missing and extra."""


def problem(reference: Instances, candidate: Instances) -> str:
    """Return why two lists cannot be compared, '' when they can."""
    for side, results in (('reference', reference), ('candidate', candidate)):
        masks, scores, labels = results.masks, results.scores, results.labels
        if masks.ndim != 3 or len(masks) != len(scores) or labels.shape != (len(scores),):
            return (
                f'{side}: masks {masks.shape}, scores {scores.shape} and labels {labels.shape} do not belong '
                f'together'
            )
        if bad := int((~np.isfinite(scores)).sum()):
            return f'{side}: {bad} instances have NaN or infinite scores'
    if reference.masks.shape[1:] != candidate.masks.shape[1:]:
        return f'masks: got {candidate.masks.shape[1:]} pixels, expected {reference.masks.shape[1:]}'
    return ''


def pair_up(
    reference: Instances, candidate: Instances, iou_bar: float = IOU_BAR, score_bar: float = SCORE_BAR
) -> Pairing:
    """Pair two lists of instances one to one, within a class; the nearness is the IoU of the masks.

    Pairs within the bars have an IoU of at least `iou_bar`, and scores that differ by `score_bar` at most.
    """
    iou = class_iou(reference, candidate)
    return matching.pair_lists(reference, candidate, iou >= iou_bar, iou, PAIR_IOU, score_bar)


match_detections = functools.partial(
    matching.match_lists, problem=problem, pair_by=pair_up, score_thr=0.1, score_bar=SCORE_BAR
)
"""Matches masks in pixels of the original image as `matching.match_lists` does, also by `iou_bar`."""
fit_pair = bbox2d.fit_pair


def draw_pair(
    pair: Pair, classes: Sequence[str], score_thr: float = 0.3, *, pair_by: Callable[..., Pairing] = pair_up
) -> np.ndarray:
    """Draw both engines' masks of a pair, see `bbox2d.side_by_side`."""
    from mmdeploy_ext.runtime.draw import draw_instances

    task: dict[str, Callable[..., Any]] = dict(draw=draw_instances, problem=problem, pair_by=pair_by)
    return bbox2d.side_by_side(pair, classes, score_thr, **task)


def class_iou(reference: Instances, candidate: Instances) -> np.ndarray:
    """Return the IoU (R, C) float64 of every reference with every candidate mask; -1 across classes.

    Two empty masks have IoU 1, and so have masks that differ in `FLIPPED_PIXELS` at most.
    """
    iou = np.full((len(reference), len(candidate)), -1.0)
    for label in np.intersect1d(reference.labels, candidate.labels):
        rows, columns = np.flatnonzero(reference.labels == label), np.flatnonzero(candidate.labels == label)
        masks, candidates = reference.masks[rows], candidate.masks[columns]
        overlap = _overlaps(masks.reshape(len(rows), -1), candidates.reshape(len(columns), -1))
        areas, candidate_areas = (
            np.array([np.count_nonzero(mask) for mask in side], np.float64) for side in (masks, candidates)
        )
        union = areas[:, None] + candidate_areas[None] - overlap
        part = np.divide(overlap, union, out=np.ones_like(overlap), where=union > 0)
        part[(union - overlap <= FLIPPED_PIXELS) & (overlap > 0)] = 1.0
        iou[np.ix_(rows, columns)] = part
    return iou


def _overlaps(masks: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the number of common pixels (R, C) float64 of masks (R, P) and (C, P).

    Slices of P are multiplied one after the other: a complete copy in float32 would be written to memory
    first, four times as large as the masks.
    """
    overlap = np.zeros((len(masks), len(candidates)))
    for start in range(0, masks.shape[1], PIXELS_AT_ONCE):
        pixels = slice(start, start + PIXELS_AT_ONCE)
        overlap += masks[:, pixels].astype(np.float32) @ candidates[:, pixels].astype(np.float32).T
    return overlap
