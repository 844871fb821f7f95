"""Level 3 of a proof for boxes in images: match by class and IoU, draw both engines side by side."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mmdeploy_ext.proof.tasks import matching
from mmdeploy_ext.runtime.draw import FONT, draw_detections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mmdeploy_ext.proof.results import DetectionRow, Pair
    from mmdeploy_ext.proof.tasks.matching import Pairing
    from mmdeploy_ext.runtime.detections import Detections

IOU_BAR = 0.999
"""Smallest IoU of a matched pair."""
SCORE_BAR = 1e-4
"""Largest score difference of a matched pair."""
CORNER_EPS = 5e-3
"""Pixels. Boxes that agree this closely in x are compared by y alone, and the other way round; in both, their
IoU is 1. A sliver at a border has no area to measure, and its corners are rounded as those of the large box
that was clipped to it. Measured, with tensors of both engines within 1e-5: clipped boxes of no width were
1.2e-3 pixels apart in y at 384x512 (FPG), one 1.6 pixels wide and 95 high 1.9e-3 in x at 320x448 (NAS-FPN).
"""
PAIR_IOU = 0.5
"""Boxes outside the bars are shown as a (failing) pair from this IoU on; below they are missing and extra."""


def match_detections(
    image: str,
    reference: Detections,
    candidate: Detections,
    *,
    score_thr: float = 0.05,
    iou_bar: float = IOU_BAR,
    score_bar: float = SCORE_BAR,
    capacity: int | None = None,
    beyond: Callable[[], Detections] | None = None,
    near_ties: Callable[[], Iterable[Detections]] | None = None,
) -> DetectionRow:
    """Match two lists of detections one to one, within a class, whatever their order.

    The matching within the bars is of maximum size, so that equal boxes without NMS cannot be paired the
    wrong way round. Every reference box of at least `score_thr` has to be matched, also by a candidate just
    below it. Every candidate of at least `score_thr + score_bar` needs a partner among all reference boxes,
    those below included. So a score that crosses the threshold by rounding is no false alarm, and nothing
    else is let through.

    A list that was cut off at `capacity` may have swapped boxes of equal score at the cut. Only where
    `capacity` is given and both lists are exactly that long, boxes without a partner whose score is within
    `score_bar` of the last one of their list, on both sides, are ties: neither missing nor extra. Without
    `capacity` nothing is excused.

    Results below `score_thr` are only counted (`low`, `low_alone`); the ladder judges them together.

    Args:
        image: name for the row.
        reference: of the unpatched model, pixels.
        candidate: of the engine on trial, pixels of the same image.
        score_thr: see above.
        iou_bar: smallest IoU of a matched pair.
        score_bar: largest score difference of a matched pair.
        capacity: detections that both engines keep at most per image (`max_per_img`).
        beyond: returns the reference's list as it is without that limit, or with a larger one. Then a tie at
            the cut is excused only where the candidate's result is in it, too.
        near_ties: returns the reference's lists with the thresholds of its suppressions moved by rounding. A
            result without a partner is excused only where one of these lists loses, or gains, it too.

    Returns:
        The row. No boxes on both sides pass with `matched` 0; whether anything was matched at all is the
        ladder's question.
    """
    problem = _broken('reference', reference) or _broken('candidate', candidate)
    scores = reference.scores, candidate.scores
    pair = functools.partial(pair_up, iou_bar=iou_bar, score_bar=score_bar)
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


def pair_up(reference: Detections, candidate: Detections, iou_bar: float, score_bar: float) -> Pairing:
    """Pair two lists of finite detections one to one, within a class; the nearness is the IoU."""
    iou = class_iou(reference, candidate)
    score_gap = matching.score_gaps(reference.scores, candidate.scores)
    allowed = (iou >= iou_bar) & (score_gap <= score_bar)
    return matching.pair_lists(allowed, iou, score_gap, reference.scores, PAIR_IOU)


def _broken(side: str, detections: Detections) -> str:
    return matching.broken(side, detections.bboxes_xyxy, detections.scores, detections.labels, 4)


def class_iou(reference: Detections, candidate: Detections) -> np.ndarray:
    """Return the IoU (R, C) float64 of every reference with every candidate box; -1 across classes."""
    rows, columns = np.nonzero(reference.labels[:, None] == candidate.labels[None])
    one = reference.bboxes_xyxy.astype(np.float64)[rows].T
    two = candidate.bboxes_xyxy.astype(np.float64)[columns].T
    near = np.abs(one - two) <= CORNER_EPS
    equal = near[:2] & near[2:]
    shared = np.maximum(np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2]), 0)
    sides = shared, one[2:] - one[:2], two[2:] - two[:2]
    overlap, *areas = (np.where(equal, 1.0, side).prod(0) for side in sides)
    union = sum(areas) - overlap
    iou = np.full((len(reference.labels), len(candidate.labels)), -1.0)
    iou[rows, columns] = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


def fit_pair(pair: Pair, width: int = 800) -> Pair:
    """Bring a pair to a size at which its labels are legible, before it is drawn.

    Args:
        pair: the image and both lists.
        width: pixels; wider images shrink to it, small ones are enlarged by a whole factor.
    """
    image = legible(pair.shown, width)
    before, after = (np.array(picture.shape[1::-1] * 2) for picture in (pair.shown, image))
    ratios = before / after
    sides = (side.scaled(ratios) for side in (pair.reference, pair.candidate))
    return dataclasses.replace(pair, **dict(zip(('reference', 'candidate'), sides, strict=True)), shown=image)


def legible(image: np.ndarray, width: int) -> np.ndarray:
    """Return a picture that is wide enough for labels: a wider one shrinks, a small one grows by a factor."""
    ratio = width / image.shape[1]
    if ratio < 1:
        size = width, max(round(image.shape[0] * ratio), 1)
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if ratio < 2:
        return image
    return cv2.resize(image, None, fx=int(ratio), fy=int(ratio), interpolation=cv2.INTER_CUBIC)


def draw_pair(pair: Pair, classes: Sequence[str], score_thr: float = 0.3) -> np.ndarray:
    """Draw both engines' detections side by side under title strips.

    Boxes without an equal on the other side, by the bars of `match_detections`, get a white frame.

    Args:
        pair: the image and both lists.
        classes: names by label.
        score_thr: boxes below are left out, and not counted in the titles.

    Returns:
        (h + strip, 2w + gap, 3) uint8 BGR.
    """
    pair_boxes = functools.partial(pair_up, iou_bar=IOU_BAR, score_bar=SCORE_BAR)
    lonely = matching.alone(pair, _broken, pair_boxes)
    return side_by_side(pair, classes, score_thr, lonely, draw_detections)


def side_by_side(
    pair: Pair,
    classes: Sequence[str],
    score_thr: float,
    alone: tuple[np.ndarray, np.ndarray],
    draw: Callable[..., np.ndarray],
) -> np.ndarray:
    """Draw both lists of a pair under title strips.

    Args:
        pair: the image and both lists.
        classes: names by label.
        score_thr: what scores less is left out, and not counted in the titles.
        alone: for each side which results (n,) bool have no equal on the other.
        draw: `draw_detections` or one that takes the same.

    Returns:
        (h + strip, 2w + gap, 3) uint8 BGR.
    """
    width = pair.shown.shape[1]
    sides = []
    for engine, found, lonely in zip(
        ('PyTorch', pair.engine), (pair.reference, pair.candidate), alone, strict=True
    ):
        shown = found.scores >= score_thr
        different = int((lonely & shown).sum())
        title = f'{engine} ({int(shown.sum())})' + (f': {different} differ' if different else '')
        sides.append(_titled(title, draw(pair.shown, found, classes, score_thr, lonely)))
    gap = np.full((sides[0].shape[0], max(4, width // 100), 3), 255, np.uint8)
    return np.hstack([sides[0], gap, sides[1]])


def _titled(title: str, picture: np.ndarray) -> np.ndarray:
    width = picture.shape[1]
    scale = float(np.clip(width / 1000, 0.4, 1.2))
    thickness = max(1, round(scale * 1.6))
    (_, text_h), baseline = cv2.getTextSize(title, FONT, scale, thickness)
    strip = np.full((text_h + 2 * baseline + 4, width, 3), 40, np.uint8)
    cv2.putText(
        strip, title, (baseline, text_h + baseline), FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA
    )
    return np.vstack([strip, picture])
