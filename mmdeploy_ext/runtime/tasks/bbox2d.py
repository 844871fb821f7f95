"""2D boxes: matched by class and IoU, both engines drawn side by side."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.spec import matching

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.runtime.detections import Detections
    from mmdeploy_ext.spec.matching import Pairing
    from mmdeploy_ext.spec.results import Pair

RESULTS, PLACE = 'boxes', 'worst IoU'
half_bars, half_text = matching.overlap_bars, matching.overlap_text
IOU_BAR = 0.999
SCORE_BAR = 1e-4
ONE_TO_ONE = dict(iou_bar=0.9999, score_bar=1e-5, score_thr=0.0)
"""Arguments of `match_detections` for two programs on equal tensors."""
SAME_LOGITS_SCORE_BAR = 1e-5
"""Largest score difference of a pair from equal logits."""
CORNER_EPS = 5e-3
"""Pixels."""
PAIR_IOU = 0.5
"""Smallest IoU of one object outside the bars; below, a box is missing and one extra."""
LEGIBLE = 800
"""Pixels."""


problem = matching.broken_boxes


def pair_up(
    reference: Detections, candidate: Detections, iou_bar: float = IOU_BAR, score_bar: float = SCORE_BAR
) -> Pairing:
    """Pair two lists of finite detections one to one, within a class; the nearness is the IoU.

    `iou_bar`: smallest IoU of a pair; `score_bar`: its largest score difference.
    """

    def pair(reference: Detections, candidate: Detections) -> Pairing:
        return pair_by_iou(reference, candidate, class_iou(reference, candidate), iou_bar, score_bar)

    return matching.pair_within_labels(reference, candidate, pair)


def pair_by_iou(
    reference: Any,
    candidate: Any,
    iou: np.ndarray,
    iou_bar: float = IOU_BAR,
    score_bar: float = SCORE_BAR,
    gaps: Sequence[tuple[str, np.ndarray, float]] = (),
) -> Pairing:
    """Pair results by their IoU (R, C), -1 across classes; `gaps`: see `matching.pair_lists`."""
    return matching.pair_lists(reference, candidate, iou >= iou_bar, iou, PAIR_IOU, score_bar, gaps)


match_detections = functools.partial(
    matching.match_lists, problem=problem, pair_by=pair_up, score_thr=0.05, score_bar=SCORE_BAR
)


def class_iou(reference: Detections, candidate: Detections) -> np.ndarray:
    """Return the IoU (R, C) of all pairs; -1 across classes."""
    boxes, candidate_boxes = (side.bboxes_xyxy.astype(np.float64) for side in (reference, candidate))
    iou = np.full((len(boxes), len(candidate_boxes)), -1.0)
    for label in np.intersect1d(reference.labels, candidate.labels):
        rows, columns = (np.flatnonzero(side.labels == label) for side in (reference, candidate))
        iou[np.ix_(rows, columns)] = 0.0
        pairs = np.nonzero(_meet(boxes[rows][:, None, ::2], candidate_boxes[columns][None, :, ::2]))
        rows, columns = rows[pairs[0]], columns[pairs[1]]
        meet = _meet(boxes[rows, 1::2], candidate_boxes[columns, 1::2])
        rows, columns = rows[meet], columns[meet]
        iou[rows, columns] = _iou(boxes[rows].T, candidate_boxes[columns].T)
    return iou


def _meet(spans: np.ndarray, candidate_spans: np.ndarray) -> np.ndarray:
    (start, end), (candidate_start, candidate_end) = (
        (side[..., 0], side[..., 1]) for side in (spans, candidate_spans)
    )
    meet = np.minimum(end, candidate_end) > np.maximum(start, candidate_start)
    return meet | (abs(start - candidate_start) <= CORNER_EPS) & (abs(end - candidate_end) <= CORNER_EPS)


def _iou(boxes: np.ndarray, candidate_boxes: np.ndarray) -> np.ndarray:
    near = np.abs(boxes - candidate_boxes) <= CORNER_EPS
    equal = near[:2] & near[2:]
    lower = np.maximum(boxes[:2], candidate_boxes[:2])
    shared = np.maximum(np.minimum(boxes[2:], candidate_boxes[2:]) - lower, 0)
    sides = shared, boxes[2:] - boxes[:2], candidate_boxes[2:] - candidate_boxes[:2]
    overlap, *areas = (np.where(equal, 1.0, side).prod(0) for side in sides)
    union = sum(areas) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def fit_pair(pair: Pair) -> Pair:
    import cv2

    (height, width), image = pair.background.shape[:2], pair.background
    if width > LEGIBLE:
        size = LEGIBLE, max(round(height * (LEGIBLE / width)), 1)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    elif (factor := LEGIBLE // width) > 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    ratios = np.divide((width, height) * 2, image.shape[1::-1] * 2)
    sides = dict(reference=pair.reference.scaled(ratios), candidate=pair.candidate.scaled(ratios))
    return dataclasses.replace(pair, **sides, background=image)


def side_by_side(
    pair: Pair,
    classes: Sequence[str],
    score_thr: float = 0.3,
    *,
    draw: Callable[..., np.ndarray],
    **task: Callable[..., Any],
) -> np.ndarray:
    """Draw both lists of a pair side by side, (h + strip, 2w + gap, 3) uint8 BGR.

    Results without a partner have a white outline. `draw`: such as `draw_detections`; `task`: arguments
    of `matching.alone`.
    """
    sides = []
    columns = ('PyTorch', pair.engine), (pair.reference, pair.candidate), matching.alone(pair, **task)
    for engine, results, lonely in zip(*columns, strict=True):
        drawn = results.scores >= score_thr
        different = int((lonely & drawn).sum())
        title = f'{engine} ({int(drawn.sum())})' + (f': {different} differ' if different else '')
        picture = draw(pair.background, results, classes, score_thr, lonely)
        sides.append(np.vstack([_title_strip(title, picture.shape[1]), picture]))
    gap = np.full((sides[0].shape[0], max(4, pair.background.shape[1] // 100), 3), 255, np.uint8)
    return np.hstack([sides[0], gap, sides[1]])


def draw_pair(
    pair: Pair,
    classes: Sequence[str],
    score_thr: float = 0.3,
    problem: Callable[[Any, Any], str] = problem,
    pair_by: Callable[..., Pairing] = pair_up,
) -> np.ndarray:
    from mmdeploy_ext.runtime.draw import draw_detections

    return side_by_side(pair, classes, score_thr, draw=draw_detections, problem=problem, pair_by=pair_by)


def _title_strip(title: str, width: int) -> np.ndarray:
    import cv2

    from mmdeploy_ext.runtime.draw import FONT

    scale = float(np.clip(width / 1000, 0.4, 1.2))
    thickness = max(1, round(scale * 1.6))
    (_, text_height), baseline = cv2.getTextSize(title, FONT, scale, thickness)
    strip = np.full((text_height + 2 * baseline + 4, width, 3), 40, np.uint8)
    origin = baseline, text_height + baseline
    cv2.putText(strip, title, origin, FONT, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return strip
