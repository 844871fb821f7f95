"""The task of instance masks in a proof: match by class and mask IoU, draw both engines side by side."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.tasks import bbox2d, matching

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.runtime.detections import Instances
    from mmdeploy_ext.tasks.matching import Pairing
    from mmdeploy_ext.tasks.results import Pair

RESULTS, PLACE = 'masks', 'worst IoU'
"""Titles of columns in tables."""
half_bars, half_text = matching.overlap_bars, matching.overlap_text
"""Bars of files in float16 or INT8, as keywords of `match_detections` and in words."""
IOU_BAR = 0.98
"""Smallest mask IoU of a matched pair, in float32."""
SCORE_BAR = 1e-3
"""Largest score difference of a matched pair, in float32: scores are means over the pixels of masks."""
ONE_TO_ONE = dict(iou_bar=IOU_BAR, score_bar=1e-5, score_thr=0.0)
"""Arguments of `match_detections` for results of one file's tensors, by two codes."""
FLIPPED_PIXELS = 2
"""Overlapping masks that differ in no more pixels are equal: values at the threshold round either way."""
PIXELS_AT_ONCE = 1 << 14
"""Pixels of each mask that are multiplied at once, so that their copies stay in the caches."""
PAIR_IOU = 0.5
"""Smallest IoU of two masks outside the bars that count as one object; of others one is missing, one extra.
"""


def problem(reference: Instances, candidate: Instances) -> str:
    """Return why the results of both engines for an image cannot be compared; '' if they can."""
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
    """Pair two lists of instances one to one, within a class; the nearness is the IoU of the masks."""
    iou = class_iou(reference, candidate)
    return matching.pair_lists(reference, candidate, iou >= iou_bar, iou, PAIR_IOU, score_bar)


match_detections = functools.partial(
    matching.match_lists, problem=problem, pair_by=pair_up, score_thr=0.1, score_bar=SCORE_BAR
)
"""Matches the instances of an image, see `matching.match_lists`; `iou_bar` is passed on to `pair_up`."""
fit_pair = bbox2d.fit_pair
"""Brings the image of a `Pair` to a size for drawing; masks stay, and `draw_pair` resizes them."""


def draw_pair(
    pair: Pair, classes: Sequence[str], score_thr: float = 0.3, *, pair_by: Callable[..., Pairing] = pair_up
) -> np.ndarray:
    """Return a picture (h, w, 3) uint8 BGR of the masks of both engines side by side."""
    from mmdeploy_ext.runtime.draw import draw_instances

    task: dict[str, Callable[..., Any]] = dict(draw=draw_instances, problem=problem, pair_by=pair_by)
    return bbox2d.side_by_side(pair, classes, score_thr, **task)


def class_iou(reference: Instances, candidate: Instances) -> np.ndarray:
    """Return the IoU (R, C) of every reference with every candidate mask; -1 across classes."""
    iou = np.full((len(reference), len(candidate)), -1.0)
    for label in np.intersect1d(reference.labels, candidate.labels):
        rows, columns = np.flatnonzero(reference.labels == label), np.flatnonzero(candidate.labels == label)
        masks, candidates = (
            side.masks[indices].astype(bool, copy=False)
            for side, indices in ((reference, rows), (candidate, columns))
        )
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
    overlap = np.zeros((len(masks), len(candidates)))
    for start in range(0, masks.shape[1], PIXELS_AT_ONCE):
        pixels = slice(start, start + PIXELS_AT_ONCE)
        overlap += masks[:, pixels].astype(np.float32) @ candidates[:, pixels].astype(np.float32).T
    return overlap
