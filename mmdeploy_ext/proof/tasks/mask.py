"""Level 3 of a proof for instance masks: match by class and mask IoU, draw both engines side by side.

Glossary: R reference instances (rows), C candidate instances (columns), P pixels.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.proof.tasks import matching
from mmdeploy_ext.proof.tasks.bbox2d import legible, side_by_side
from mmdeploy_ext.runtime.detections import Instances
from mmdeploy_ext.runtime.draw import draw_instances

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mmdeploy_ext.proof.results import DetectionRow, Pair
    from mmdeploy_ext.proof.tasks.matching import Pairing

SCORE_THR = 0.1
IOU_BAR = 0.995
"""Smallest mask IoU of a matched pair."""
SCORE_BAR = 1e-3
"""Largest score difference of a matched pair."""
FLIPPED_PIXELS = 2
"""Masks that differ in so few pixels have IoU 1: a value at the threshold may round to either side."""
PIXELS = 1 << 14
"""Of masks that are multiplied at once: their copies in float32 stay in the caches."""
PAIR_IOU = 0.5
"""Masks outside the bars are shown as a (failing) pair from this IoU on; below they are missing and extra."""


def match_detections(
    image: str,
    reference: Instances,
    candidate: Instances,
    *,
    score_thr: float = SCORE_THR,
    iou_bar: float = IOU_BAR,
    score_bar: float = SCORE_BAR,
    capacity: int | None = None,
    beyond: Callable[[], Instances] | None = None,
    near_ties: Callable[[], Iterable[Instances]] | None = None,
    pair_by: Callable[..., Pairing] | None = None,
) -> DetectionRow:
    """Match two lists of instances one to one, within a class, whatever their order.

    The rules are those of boxes in images (`bbox2d.match_detections`), with the IoU of masks.

    Args:
        image: name for the row.
        reference: of the unpatched model, pixels of the original image.
        candidate: of the engine on trial, pixels of the same image.
        score_thr: instances of at least this score count.
        iou_bar: smallest IoU of a matched pair.
        score_bar: largest score difference of a matched pair.
        capacity: instances that both engines keep at most per image (`max_per_img`).
        beyond: returns the reference's list as it is without that limit, or with a larger one. Then a tie at
            the cut is excused only where the candidate's result is in it, too.
        near_ties: see `bbox2d.match_detections`.
        pair_by: `pair_up` of another task, which looks at more than masks.

    Returns:
        The row.
    """
    pair = functools.partial(pair_by or pair_up, iou_bar=iou_bar, score_bar=score_bar)
    problem = _broken('reference', reference) or _broken('candidate', candidate)
    if not problem and reference.masks.shape[1:] != candidate.masks.shape[1:]:
        problem = f'masks: got {candidate.masks.shape[1:]} pixels, expected {reference.masks.shape[1:]}'
    scores = reference.scores, candidate.scores
    return matching.match_by_iou(
        image,
        problem,
        scores,
        lambda: pair(reference, candidate),
        score_thr,
        score_bar,
        capacity,
        beyond and (lambda: pair(beyond(), candidate).matched.values()),
        near_ties and (lambda: matching.near_ties_of(near_ties(), reference, candidate, pair)),
    )


def pair_up(
    reference: Instances, candidate: Instances, iou_bar: float = IOU_BAR, score_bar: float = SCORE_BAR
) -> Pairing:
    """Pair two lists of instances one to one, within a class; the nearness is the IoU of the masks."""
    iou = class_iou(reference, candidate)
    score_gap = matching.score_gaps(reference.scores, candidate.scores)
    allowed = (iou >= iou_bar) & (score_gap <= score_bar)
    return matching.pair_lists(allowed, iou, score_gap, reference.scores, PAIR_IOU)


def class_iou(reference: Instances, candidate: Instances) -> np.ndarray:
    """Return the IoU (R, C) float64 of every reference with every candidate mask; -1 across classes.

    Two empty masks have IoU 1, and so have masks that differ in `FLIPPED_PIXELS` at most.
    """
    iou = np.full((len(reference), len(candidate)), -1.0)
    for label in np.intersect1d(reference.labels, candidate.labels):
        rows, columns = np.flatnonzero(reference.labels == label), np.flatnonzero(candidate.labels == label)
        one, two = reference.masks[rows], candidate.masks[columns]
        overlap = _overlaps(one.reshape(len(rows), -1), two.reshape(len(columns), -1))
        union = _areas(one)[:, None] + _areas(two)[None] - overlap
        part = np.divide(overlap, union, out=np.ones_like(overlap), where=union > 0)
        part[(union - overlap <= FLIPPED_PIXELS) & (overlap > 0)] = 1.0
        iou[np.ix_(rows, columns)] = part
    return iou


def _areas(masks: np.ndarray) -> np.ndarray:
    return np.array([np.count_nonzero(mask) for mask in masks], np.float64)


def _overlaps(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return how many pixels (R, C) float64 of masks (R, P) and (C, P) are common, in slices of `P`.

    A whole copy in float32 would be written to memory first, four times as large as the masks.
    """
    overlap = np.zeros((len(one), len(two)))
    for start in range(0, one.shape[1], PIXELS):
        parts = (masks[:, start : start + PIXELS].astype(np.float32) for masks in (one, two))
        overlap += np.matmul(next(parts), next(parts).T)
    return overlap


def _broken(side: str, instances: Instances) -> str:
    count = len(instances.scores)
    if instances.masks.ndim != 3 or len(instances.masks) != count or instances.labels.shape != (count,):
        return (
            f'{side}: masks {instances.masks.shape}, scores {instances.scores.shape} and labels '
            f'{instances.labels.shape} do not belong together'
        )
    bad = int((~np.isfinite(instances.scores)).sum())
    return f'{side}: {bad} instances have NaN or infinite scores' if bad else ''


def fit_pair(pair: Pair, width: int = 800) -> Pair:
    """Bring the picture to a size at which its labels are legible; masks follow when they are drawn.

    Args:
        pair: the image and both lists.
        width: pixels; wider images shrink to it, small ones are enlarged by a whole factor.
    """
    return dataclasses.replace(pair, shown=legible(pair.shown, width))


def draw_pair(pair: Pair, classes: Sequence[str], score_thr: float = 0.3) -> np.ndarray:
    """Draw both engines' instances side by side under title strips.

    Instances without an equal on the other side, by the bars of `match_detections`, get a white outline.

    Args:
        pair: the image and both lists.
        classes: names by label.
        score_thr: instances below are left out, and not counted in the titles.

    Returns:
        (h + strip, 2w + gap, 3) uint8 BGR.
    """
    return draw_matched(pair, classes, score_thr, pair_up)


def draw_matched(
    pair: Pair, classes: Sequence[str], score_thr: float, pair_by: Callable[..., Pairing]
) -> np.ndarray:
    """Draw a pair whose results are matched by `pair_by`; see `draw_pair`."""
    return side_by_side(pair, classes, score_thr, matching.alone(pair, _broken, pair_by), draw_instances)
