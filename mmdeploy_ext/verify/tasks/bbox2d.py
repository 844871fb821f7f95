"""Level 3 of a proof for boxes in images: match by class and IoU, draw both engines side by side."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mmdeploy_ext.draw import FONT, draw_detections
from mmdeploy_ext.verify.verdict import DetectionRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.detections import Detections
    from mmdeploy_ext.verify.verdict import PicturePair

IOU_BAR = 0.999
"""Smallest IoU of a matched pair."""
SCORE_BAR = 1e-4
"""Largest score difference of a matched pair."""
CORNER_EPS = 1e-3
"""Pixels. Boxes whose corners agree this closely have IoU 1: a sliver at a border has no area to measure."""
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

    Args:
        image: name for the row.
        reference: of the unpatched model, pixels.
        candidate: of the engine on trial, pixels of the same image.
        score_thr: see above.
        iou_bar: smallest IoU of a matched pair.
        score_bar: largest score difference of a matched pair.
        capacity: detections that both engines keep at most per image (`max_per_img`).

    Returns:
        The row. No boxes on both sides pass with `matched` 0; whether anything was matched at all is the
        ladder's question.
    """
    broken = _broken('reference', reference) or _broken('candidate', candidate)
    if broken:
        return DetectionRow(image, len(reference), 0, len(reference), len(candidate), 0.0, 1.0, False, broken)
    pairing = pair_up(reference, candidate, iou_bar, score_bar)
    partner = {**pairing.matched, **pairing.outside}
    needed = reference.scores >= score_thr
    surplus = candidate.scores >= score_thr + score_bar
    missing = [row for row in np.flatnonzero(needed) if row not in partner]
    taken = set(partner.values())
    extra = [column for column in np.flatnonzero(surplus) if column not in taken]
    if capacity and len(reference) == len(candidate) == capacity:
        missing, extra = _without_ties(missing, extra, reference.scores, candidate.scores, score_bar)
    counted = {row: column for row, column in partner.items() if needed[row] or surplus[column]}
    worst_iou = min((float(pairing.iou[pair]) for pair in counted.items()), default=1.0)
    worst_score = max((float(pairing.score_gap[pair]) for pair in counted.items()), default=0.0)
    off = sum(row in pairing.outside for row in counted)
    reason = _reason(len(missing), len(extra), off, worst_iou, worst_score)
    count, matched = int(needed.sum()), sum(bool(needed[row]) for row in pairing.matched)
    return DetectionRow(
        image, count, matched, len(missing), len(extra), worst_iou, worst_score, not reason, reason, off
    )


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Which reference box (row) goes with which candidate box (column).

    Attributes:
        iou: (R, C) float64; -1 across classes.
        score_gap: (R, C) float64 absolute differences.
        matched: row -> column within the bars.
        outside: row -> column of the rest, of IoU PAIR_IOU at least.
    """

    iou: np.ndarray
    score_gap: np.ndarray
    matched: dict[int, int]
    outside: dict[int, int]


def pair_up(reference: Detections, candidate: Detections, iou_bar: float, score_bar: float) -> Pairing:
    """Pair two lists of finite detections one to one, within a class."""
    iou = _class_iou(reference, candidate)
    scores = reference.scores.astype(np.float64), candidate.scores.astype(np.float64)
    score_gap = np.abs(np.subtract.outer(*scores))
    matched = _maximum_matching((iou >= iou_bar) & (score_gap <= score_bar), iou, reference.scores)
    return Pairing(iou, score_gap, matched, _nearest_pairs(iou, matched))


def _reason(missing: int, extra: int, off: int, worst_iou: float, worst_score: float) -> str:
    parts = [f'{missing} missing'] * bool(missing) + [f'{extra} extra'] * bool(extra)
    if off:
        parts.append(
            f'{off} pair{"s" * (off > 1)} outside the bars (worst IoU {worst_iou:.5f}, '
            f'worst score difference {worst_score:.2g})'
        )
    return ', '.join(parts)


def _broken(side: str, detections: Detections) -> str:
    """Return why a list is no list of detections; '' when it is one."""
    count = len(detections.scores)
    if detections.bboxes_xyxy.shape != (count, 4) or detections.labels.shape != (count,):
        return (
            f'{side}: boxes {detections.bboxes_xyxy.shape}, scores {detections.scores.shape} and labels '
            f'{detections.labels.shape} do not belong together'
        )
    finite = np.isfinite(detections.bboxes_xyxy).all(axis=1) & np.isfinite(detections.scores)
    bad = int((~finite).sum())
    return f'{side}: {bad} detections have NaN or infinite values' if bad else ''


def _class_iou(reference: Detections, candidate: Detections) -> np.ndarray:
    """Return the IoU (R, C) float64 of every reference with every candidate box; -1 across classes."""
    one = reference.bboxes_xyxy.astype(np.float64)[:, None]
    two = candidate.bboxes_xyxy.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    overlap = np.maximum(sides, 0).prod(-1)
    union = (one[..., 2:] - one[..., :2]).prod(-1) + (two[..., 2:] - two[..., :2]).prod(-1) - overlap
    iou = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    iou[np.abs(one - two).max(axis=-1, initial=0) <= CORNER_EPS] = 1.0
    iou[reference.labels[:, None] != candidate.labels[None]] = -1.0
    return iou


def _maximum_matching(allowed: np.ndarray, preference: np.ndarray, scores: np.ndarray) -> dict[int, int]:
    """Return row -> column of a largest one-to-one matching of the allowed pairs (augmenting paths).

    Args:
        allowed: (R, C) bool.
        preference: (R, C); each row tries its larger values first.
        scores: (R,); rows of higher score come first, and a row once matched stays matched.
    """
    choices = [
        sorted(np.flatnonzero(row).tolist(), key=lambda column, values=values: -values[column])
        for row, values in zip(allowed, preference, strict=True)
    ]
    owner: dict[int, int] = {}

    def augment(row: int, seen: set[int]) -> bool:
        for column in choices[row]:
            if column not in seen:
                seen.add(column)
                if column not in owner or augment(owner[column], seen):
                    owner[column] = row
                    return True
        return False

    for row in np.argsort(-scores, kind='stable').tolist():
        augment(row, set())
    return {row: column for column, row in owner.items()}


def _nearest_pairs(iou: np.ndarray, matched: dict[int, int]) -> dict[int, int]:
    """Pair what is left by descending IoU above PAIR_IOU: row -> column."""
    free = np.full_like(iou, -1.0)
    rows = [row for row in range(iou.shape[0]) if row not in matched]
    columns = sorted(set(range(iou.shape[1])) - set(matched.values()))
    free[np.ix_(rows, columns)] = iou[np.ix_(rows, columns)]
    pairs: dict[int, int] = {}
    for flat in np.argsort(-free, axis=None, kind='stable'):
        row, column = divmod(int(flat), iou.shape[1])
        if free[row, column] < PAIR_IOU:
            break
        if row not in pairs and column not in pairs.values():
            pairs[row] = column
    return pairs


def _without_ties(
    missing: list[int],
    extra: list[int],
    reference_scores: np.ndarray,
    candidate_scores: np.ndarray,
    score_bar: float,
) -> tuple[list[int], list[int]]:
    """Take out boxes without a partner at the cut of two full lists, as many on one side as on the other."""
    cuts = float(reference_scores.min()), float(candidate_scores.min())
    if abs(cuts[0] - cuts[1]) > score_bar:
        return missing, extra
    tied_missing = [row for row in missing if reference_scores[row] - cuts[0] <= score_bar]
    tied_extra = [column for column in extra if candidate_scores[column] - cuts[1] <= score_bar]
    excused = min(len(tied_missing), len(tied_extra))
    return (
        [row for row in missing if row not in tied_missing[:excused]],
        [column for column in extra if column not in tied_extra[:excused]],
    )


def fit_pair(pair: PicturePair, width: int = 800) -> PicturePair:
    """Bring a pair to a size at which its labels are legible, before it is drawn.

    Args:
        pair: the image and both lists.
        width: pixels; wider images shrink to it, small ones are enlarged by a whole factor.
    """
    image = pair.image_bgr
    ratio = width / image.shape[1]
    if ratio < 1:
        image = cv2.resize(
            image, (width, max(round(image.shape[0] * ratio), 1)), interpolation=cv2.INTER_AREA
        )
    elif ratio >= 2:
        image = cv2.resize(image, None, fx=int(ratio), fy=int(ratio), interpolation=cv2.INTER_CUBIC)
    before, after = (np.array(picture.shape[1::-1] * 2) for picture in (pair.image_bgr, image))
    ratios = before / after
    return dataclasses.replace(
        pair,
        image_bgr=image,
        reference=pair.reference.scaled(ratios),
        candidate=pair.candidate.scaled(ratios),
    )


def draw_pair(pair: PicturePair, classes: Sequence[str], score_thr: float = 0.3) -> np.ndarray:
    """Draw both engines' detections side by side under title strips.

    Boxes without an equal on the other side, by the bars of `match_detections`, get a white frame.

    Args:
        pair: the image and both lists.
        classes: names by label.
        score_thr: boxes below are left out, and not counted in the titles.

    Returns:
        (h + strip, 2w + gap, 3) uint8 BGR.
    """
    width = pair.image_bgr.shape[1]
    sides = []
    for engine, detections, alone in zip(
        ('PyTorch', pair.engine), (pair.reference, pair.candidate), _alone(pair), strict=True
    ):
        shown = detections.scores >= score_thr
        different = int((alone & shown).sum())
        title = f'{engine} ({int(shown.sum())})' + (f': {different} differ' if different else '')
        picture = draw_detections(pair.image_bgr, detections, classes, score_thr, alone)
        sides.append(_titled(title, picture))
    gap = np.full((sides[0].shape[0], max(4, width // 100), 3), 255, np.uint8)
    return np.hstack([sides[0], gap, sides[1]])


def _alone(pair: PicturePair) -> tuple[np.ndarray, np.ndarray]:
    """Return for each side which boxes (n,) bool have no equal on the other."""
    alone = np.ones(len(pair.reference), bool), np.ones(len(pair.candidate), bool)
    if not _broken('', pair.reference) and not _broken('', pair.candidate):
        matched = pair_up(pair.reference, pair.candidate, IOU_BAR, SCORE_BAR).matched
        alone[0][list(matched.keys())] = False
        alone[1][list(matched.values())] = False
    return alone


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
