"""One-to-one matching of two lists of detections, whatever "near" means to the task.

Glossary: R reference detections (rows), C candidate detections (columns).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proof.enough import ASKED, ASKED_LEAST
from mmdeploy_ext.proof.results import DetectionRow
from mmdeploy_ext.proof.tasks.assignment import maximum_matching, nearest_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mmdeploy_ext.proof.results import Pair


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Which reference box (row) goes with which candidate box (column).

    Attributes:
        nearness: (R, C) float64, larger is nearer: an IoU, or minus a distance.
        score_gap: (R, C) float64 absolute differences.
        matched: row -> column within the bars.
        outside: row -> column of the rest that is near enough to be the same object.
    """

    nearness: np.ndarray
    score_gap: np.ndarray
    matched: dict[int, int]
    outside: dict[int, int]


NearTies = Iterator[tuple[set[int], set[int], bool]]
"""By run: references that may be missing, candidates that may be there, whether it is their list in whole."""
ONE_DECISION = 2
"""Results that a decision of rounding loses and gains. Where one run gives the candidate's list in whole, and
no more are lost and gained, so many count as excused: queries look at each other, so that it moves others.
Measured of the trained BEVFusion toy: in one of 120 frames two peaks differ by 4e-7 of themselves, the engine
takes the other one, and four boxes of eight move by 2 to 6 mm, as in two of 24 runs of PyTorch."""
PATIENCE = 20
"""Runs of the reference that explain nothing more, after which no more are made: its thresholds, its choices
of ties, and some rounding."""


@dataclasses.dataclass(frozen=True)
class Tally:
    """What a pairing means for the detections that count.

    Attributes:
        needed: reference detections at or above the threshold.
        matched: of those, with a partner within the bars.
        missing: of those, without any partner.
        extra: candidates clearly above the threshold without any partner.
        pairs: row -> column of the pairs that count.
        outside: of those, outside the bars.
        low: results of both lists that do not count, since their scores are below the threshold.
        low_alone: of those, without a partner within the bars.
        ties: of both lists, excused by `near_ties`.
    """

    needed: int
    matched: int
    missing: int
    extra: int
    pairs: dict[int, int]
    outside: int
    low: int = 0
    low_alone: int = 0
    ties: int = 0

    def worst(self, values: np.ndarray, default: float) -> float:
        """Return the largest of an (R, C) array over the pairs that count."""
        return max((float(values[pair]) for pair in self.pairs.items()), default=default)


def match_by_iou(
    image: str,
    problem: str,
    scores: tuple[np.ndarray, np.ndarray],
    pair: Callable[[], Pairing],
    score_thr: float,
    score_bar: float,
    capacity: int | None,
    beyond: Callable[[], Iterable[int]] | None = None,
    near_ties: Callable[[], NearTies] | None = None,
) -> DetectionRow:
    """Return the row of one image, whose nearness is an IoU.

    Args:
        image: name for the row.
        problem: why the lists cannot be compared at all, '' when they can.
        scores: of the reference (R,) and of the candidate (C,).
        pair: pairs the lists up; not called where there is a problem.
        score_thr: lowest score that counts.
        score_bar: largest score difference of a matched pair.
        capacity: results that both engines keep at most.
        beyond: see `tally`.
        near_ties: see `tally`.
    """
    if problem:
        count = len(scores[0])
        return DetectionRow(image, count, 0, count, len(scores[1]), 0.0, 1.0, False, problem, broken=True)
    pairing = pair()
    found = tally(pairing, scores, score_thr, score_bar, capacity, beyond, near_ties)
    worst_iou, worst_score = -found.worst(-pairing.nearness, -1.0), found.worst(pairing.score_gap, 0.0)
    why = reason(found, f'worst IoU {worst_iou:.5f}, worst score difference {worst_score:.2g}')
    return DetectionRow(
        image=image,
        reference=found.needed,
        matched=found.matched,
        missing=found.missing,
        extra=found.extra,
        worst_iou=worst_iou,
        worst_score=worst_score,
        passed=not why,
        reason=why,
        outside=found.outside,
        low=found.low,
        low_alone=found.low_alone,
        ties=found.ties,
    )


def near_ties_of(
    lists: Iterable[Any], reference: Any, candidate: Any, pair: Callable[..., Pairing]
) -> NearTies:
    """Yield which results each of other lists of the same engine loses and gains; see `NearTies`.

    Args:
        lists: of the reference, as it is where its suppression is rounded otherwise.
        reference: R results.
        candidate: C results.
        pair: pairs two lists up within the bars.
    """
    for other in lists:
        rows = set(range(len(reference.scores))) - set(pair(reference, other).matched)
        columns = set(pair(other, candidate).matched.values())
        yield rows, columns, len(columns) == len(candidate.scores) == len(other.scores)


def score_gaps(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return the absolute differences (R, C) float64 of scores (R,) and (C,)."""
    return np.abs(np.subtract.outer(reference.astype(np.float64), candidate.astype(np.float64)))


def pair_lists(
    allowed: np.ndarray, nearness: np.ndarray, score_gap: np.ndarray, scores: np.ndarray, floor: float
) -> Pairing:
    """Match the allowed pairs, as many as possible; then pair what is left by nearness down to `floor`."""
    matched = maximum_matching(allowed, nearness, scores)
    return Pairing(nearness, score_gap, matched, nearest_pairs(nearness, matched, floor))


def tally(
    pairing: Pairing,
    scores: tuple[np.ndarray, np.ndarray],
    score_thr: float,
    score_bar: float,
    capacity: int | None,
    beyond: Callable[[], Iterable[int]] | None = None,
    near_ties: Callable[[], NearTies] | None = None,
) -> Tally:
    """Count; see `match_detections` of the tasks for what counts and what is excused.

    Args:
        pairing: of both lists.
        scores: of the reference (R,) and of the candidate (C,).
        score_thr: lowest score that counts.
        score_bar: largest score difference of a matched pair.
        capacity: detections that both engines keep at most.
        beyond: returns the candidates (columns) that match a result of the reference if its list is not cut
            off at `capacity`; only these are excused as ties at the cut. None: scores alone tell ties.
        near_ties: returns what the reference itself loses and gains where its suppression is rounded
            otherwise; asked only where something has no partner, which is then excused, and where that is not
            too much to be (`ASKED`). None: nothing is.
    """
    reference, candidate = scores
    partner = {**pairing.matched, **pairing.outside}
    needed, surplus = reference >= score_thr, candidate >= score_thr + score_bar
    missing = [row for row in np.flatnonzero(needed) if row not in partner]
    taken = set(partner.values())
    extra = [column for column in np.flatnonzero(surplus) if column not in taken]
    if capacity and len(reference) == len(candidate) == capacity:
        missing, extra = _without_ties(missing, extra, reference, candidate, score_bar, beyond)
    outside = {row: column for row, column in pairing.outside.items() if needed[row] or surplus[column]}
    alone, whole = len(missing) + len(extra) + 2 * len(outside), False
    if near_ties and 0 < alone <= max(ASKED_LEAST, ASKED * (needed.sum() + surplus.sum())):
        one = len(missing) + len(extra) <= ONE_DECISION
        odd = {*missing, *outside}, {*extra, *outside.values()}
        rows, columns, whole = _unexplained(*odd, near_ties(), one)
        missing = [row for row in missing if row in rows]
        extra = [column for column in extra if column in columns]
        outside = {row: column for row, column in outside.items() if row in rows or column in columns}
    low = int((~needed).sum() + (candidate < score_thr).sum())
    low_paired = sum(
        int(not needed[row]) + int(candidate[column] < score_thr) for row, column in pairing.matched.items()
    )
    kept = {**pairing.matched, **outside}
    pairs = {row: column for row, column in kept.items() if needed[row] or surplus[column]}
    return Tally(
        needed=int(needed.sum()),
        matched=sum(bool(needed[row]) for row in pairing.matched),
        missing=len(missing),
        extra=len(extra),
        pairs=pairs,
        outside=len(outside),
        low=low,
        low_alone=low - low_paired,
        ties=min(alone, ONE_DECISION) if whole else alone - len(missing) - len(extra) - 2 * len(outside),
    )


def _unexplained(
    rows: set[int], columns: set[int], near_ties: NearTies, one: bool
) -> tuple[set[int], set[int], bool]:
    """Return what no run loses or gains, and whether `one` decision explains all.

    No more runs are made once all is explained, or nothing more for long.
    """
    idle = 0
    for lost, gained, whole in near_ties:
        if whole and one:
            return set(), set(), True
        known = len(rows) + len(columns)
        rows, columns = rows - lost, columns - gained
        idle = 0 if len(rows) + len(columns) < known else idle + 1
        if idle == PATIENCE or not (rows or columns):
            break
    return rows, columns, False


def reason(found: Tally, worst: str) -> str:
    """Return why a tally fails in one line, '' when it does not; `worst` describes the worst pair."""
    parts = [f'{found.missing} missing'] * bool(found.missing) + [f'{found.extra} extra'] * bool(found.extra)
    if found.outside:
        parts.append(f'{found.outside} pair{"s" * (found.outside > 1)} outside the bars ({worst})')
    return ', '.join(parts)


def broken(side: str, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, columns: int) -> str:
    """Return why boxes (n, `columns`), scores (n,) and labels (n,) do not fit; '' when they do."""
    count = len(scores)
    if boxes.shape != (count, columns) or labels.shape != (count,):
        return (
            f'{side}: boxes {boxes.shape}, scores {scores.shape} and labels {labels.shape} do not belong '
            f'together'
        )
    bad = int((~(np.isfinite(boxes).all(axis=1) & np.isfinite(scores))).sum())
    return f'{side}: {bad} detections have NaN or infinite values' if bad else ''


def alone(
    pair: Pair, broken: Callable[[str, Any], str], pair_up: Callable[..., Pairing]
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each side which results (n,) bool have no equal on the other.

    Args:
        pair: both sides' results.
        broken: of the task: why a list cannot be compared.
        pair_up: of the task.
    """
    sides = pair.reference, pair.candidate
    lonely = np.ones(len(sides[0]), bool), np.ones(len(sides[1]), bool)
    if not any(broken('', side) for side in sides):
        matched = pair_up(*sides).matched
        lonely[0][list(matched.keys())] = False
        lonely[1][list(matched.values())] = False
    return lonely


def _without_ties(
    missing: Sequence[int],
    extra: Sequence[int],
    reference_scores: np.ndarray,
    candidate_scores: np.ndarray,
    score_bar: float,
    beyond: Callable[[], Iterable[int]] | None,
) -> tuple[list[int], list[int]]:
    """Take out boxes without a partner at the cut of two full lists, as many on one side as on the other."""
    cuts = float(reference_scores.min()), float(candidate_scores.min())
    if abs(cuts[0] - cuts[1]) > score_bar:
        return list(missing), list(extra)
    tied_missing = [row for row in missing if reference_scores[row] - cuts[0] <= score_bar]
    tied_extra = [column for column in extra if candidate_scores[column] - cuts[1] <= score_bar]
    if beyond is not None and tied_missing and tied_extra:
        known = set(beyond())
        tied_extra = [column for column in tied_extra if column in known]
    excused = min(len(tied_missing), len(tied_extra))
    return (
        [row for row in missing if row not in tied_missing[:excused]],
        [column for column in extra if column not in tied_extra[:excused]],
    )
