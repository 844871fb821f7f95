"""One-to-one matching of two lists of results, whatever "near" means to the task.

Every task matches by `match_lists`: `pair_lists` pairs two lists, and results without a partner are counted,
or excused as ties of rounding (`_tally`). The reference is PyTorch, the candidate an engine; bars are the
limits that a matched pair keeps.

Glossary: R reference results (rows), C candidate results (columns).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proving.results import DetectionRow
from mmdeploy_ext.proving.totals import ALLOWED_UNPAIRED, MAX_UNPAIRED_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mmdeploy_ext.proving.half_bars import HalfBars
    from mmdeploy_ext.proving.results import Pair


@dataclasses.dataclass(frozen=True)
class Pairing:
    """The P pairs of reference results (rows) and candidate results (columns).

    Attributes:
        nearness: (P,) float64 of the pairs in `matched`, then in `outside`, in their order; larger is nearer:
            an IoU, or minus a distance.
        gaps: 'score', and further titles of a task -> (P,) float64 absolute differences of the same pairs.
        matched: row -> column of the pairs within the bars.
        outside: row -> column of the other pairs that are near enough to be the same object.
    """

    nearness: np.ndarray
    gaps: dict[str, np.ndarray]
    matched: dict[int, int]
    outside: dict[int, int]


NearTies = Iterator[tuple[set[int], set[int], bool]]
"""For each run of PyTorch with other rounding: rows of the reference that it lacks, columns of the candidate
that it has, and whether its list equals the candidate's completely."""
ONE_DECISION = 2
"""Number of results that one decision of rounding changes: one is lost and one gained.

If one run of PyTorch with other rounding gives the candidate's list completely, and no more results than this
have no partner, at most this many count as ties, although others have moved, too, as queries attend to each
other. Measured with the trained BEVFusion toy: in one of 120
frames two peaks differ by 4e-7 of themselves, the engine takes the other one, and four boxes of eight move by
2 to 6 mm, as in two of 24 runs of PyTorch.
"""
PATIENCE = 20
"""After so many runs of the reference in a row that explain no further result, there are no more runs. That
is enough for its thresholds, its choices of ties, and some runs with other rounding."""


def overlap_bars(bars: HalfBars) -> dict[str, float]:
    """Return `iou_bar` and `score_bar` of a task whose results are matched by IoU, for float16 and INT8.

    They are arguments of its `match_detections`.
    """
    return dict(iou_bar=bars.iou, score_bar=bars.score)


def overlap_text(bars: HalfBars) -> str:
    """Return the bar of the IoU in words, 'IoU 0.98'; `HalfBars.text` adds that of scores."""
    return f'IoU {bars.iou}'


def iou_figures(pairing: Pairing, worst: Callable[..., float]) -> tuple[dict[str, float], str]:
    """Return fields of a `DetectionRow` and a text on the worst pairs, for a nearness that is an IoU.

    Args:
        pairing: the pairs of both lists.
        worst: takes values (P,) and a default, and returns the largest one of the pairs that count, or the
            default.
    """
    iou = -worst(-pairing.nearness, -1.0)
    text = f'worst IoU {iou:.5f}, worst score difference {worst(pairing.gaps["score"]):.2g}'
    return dict(worst_iou=iou), text


def match_lists(
    image: str,
    reference: Any,
    candidate: Any,
    *,
    problem: Callable[[Any, Any], str],
    pair_by: Callable[..., Pairing],
    figures: Callable[..., tuple[dict[str, float], str]] = iou_figures,
    score_thr: float,
    score_bar: float,
    capacity: int | None = None,
    beyond: Callable[[], Any] | None = None,
    near_ties: Callable[[], Iterable[Any]] | None = None,
    ranked: bool = False,
    **bars: float | None,
) -> DetectionRow:
    """Match two lists of results one to one, within a class, whatever their order.

    The matching within the bars is of maximum size, so that equal results without NMS cannot be paired the
    wrong way round. Every reference result of at least `score_thr` has to be matched, also by a candidate
    just below it. Every candidate of at least `score_thr + score_bar` needs a partner among all reference
    results, those below included. So a score that crosses the threshold by rounding is no false alarm.

    A list that was cut off at `capacity` may have swapped results of equal score at the cut. If both lists
    are exactly that long, results without a partner whose score is within `score_bar` of the last one of
    their list are ties, as many on either side: neither missing nor extra. So are two results of that score
    that overlap, if `beyond` has the candidate's. Without `capacity` no tie at a cut is excused.

    Results of lower scores are only counted (`low`, `low_alone`); `totals` judges them together.

    Args:
        image: name for the row.
        reference: results of the unpatched model, an object with `scores` (R,).
        candidate: results of the engine on trial, an object with `scores` (C,).
        problem: function of the task: (reference, candidate) -> why two lists cannot be compared at all, ''
            if they can.
        pair_by: function of the task: (reference, candidate, score_bar=..., **bars) -> their `Pairing`.
        figures: function of the task that returns fields of the row and a text on the worst pairs; its
            arguments and results are those of `iou_figures`.
        score_thr: score from which on results need a partner, see above.
        score_bar: largest score difference of a matched pair.
        capacity: largest number of results that both engines keep (`max_per_img`, `max_num`); None: no limit.
        beyond: returns the reference's list without that limit, or with a larger one. If it is given, a tie
            at the cut is excused only if the candidate's result is in that list, too.
        near_ties: returns the reference's lists of runs with other rounding, see `near_ties.py`. A result
            without a partner is excused if one of these lists lacks (of the reference) or has it (of the
            candidate), unless too many have none (`ALLOWED_UNPAIRED`, `MAX_UNPAIRED_SHARE`). None: no such
            result is excused.
        ranked: whether one decision of rounding may move all results (`ImageFamily.ranks_queries`). Then a
            list of `near_ties` that equals the candidate's completely excuses any number of results.
        bars: further keyword arguments of `pair_by`.

    Returns:
        The row. No results on both sides pass with `matched` 0; `totals` judges whether anything was matched.
    """
    if why := problem(reference, candidate):
        count, candidate_count = len(reference.scores), len(candidate.scores)
        return DetectionRow(image, count, 0, count, candidate_count, 0.0, 1.0, False, why, broken=True)
    pair = functools.partial(pair_by, score_bar=score_bar, **bars)

    def with_near_ties() -> NearTies:
        for rounded in near_ties():
            lost = set(range(len(reference.scores))) - set(pair(reference, rounded).matched)
            gained = set(pair(rounded, candidate).matched.values())
            yield lost, gained, len(gained) == len(candidate.scores) == len(rounded.scores)

    pairing = pair(reference, candidate)
    counts, pairs = _tally(
        pairing,
        (reference.scores, candidate.scores),
        (score_thr, score_bar, capacity),
        beyond and (lambda: pair(beyond(), candidate).matched.values()),
        near_ties and with_near_ties,
        ranked,
    )

    all_pairs = [*pairing.matched.items(), *pairing.outside.items()]
    counting = [index for index, (row, _) in enumerate(all_pairs) if row in pairs]

    def worst(values: np.ndarray, default: float = 0.0) -> float:
        return float(values[counting].max()) if counting else default

    measured, text = figures(pairing, worst)
    reasons = [f'{counts[key]} {key}' for key in ('missing', 'extra') if counts[key]]
    if outside := counts['outside']:
        reasons.append(f'{outside} pair{"s" if outside > 1 else ""} outside the bars ({text})')
    fields = {'worst_iou': 1.0, 'worst_score': worst(pairing.gaps['score']), **counts, **measured}
    return DetectionRow(image, **fields, passed=not reasons, reason=', '.join(reasons))


def pair_lists(
    reference: Any,
    candidate: Any,
    near: np.ndarray,
    nearness: np.ndarray,
    floor: float,
    score_bar: float,
    other_gaps: Sequence[tuple[str, np.ndarray, float]] = (),
) -> Pairing:
    """Match as many results as possible within the bars; then pair the others by nearness.

    Args:
        reference: with `scores` (R,).
        candidate: with `scores` (C,).
        near: (R, C) bool, whether a pair is near enough to match.
        nearness: (R, C), larger is nearer, see `Pairing`; below `floor` between classes.
        floor: smallest nearness of a pair outside the bars.
        score_bar: largest score difference of a match.
        other_gaps: title, differences (R, C) and bar of each further value that the task measures.
    """
    gaps = [('score', score_gaps(reference.scores, candidate.scores), score_bar), *other_gaps]
    allowed = np.logical_and.reduce([near, *(gap <= bar for _, gap, bar in gaps)])
    matched = maximum_matching(allowed, nearness, reference.scores)
    outside = nearest_pairs(nearness, matched, floor)
    pairs = [*matched, *outside], [*matched.values(), *outside.values()]
    return Pairing(nearness[pairs], {title: gap[pairs] for title, gap, _ in gaps}, matched, outside)


def pair_within_labels(reference: Any, candidate: Any, pair: Callable[[Any, Any], Pairing]) -> Pairing:
    """Pair two lists label by label: of thousands of results of hundreds of labels all pairs are gigabytes.

    Args:
        reference: R results with `labels` (R,), of which an array of indices chooses some.
        candidate: C results of the same kind.
        pair: pairs a part of both lists, all of one label, with `pair_lists`; never results of two labels.

    Returns:
        What `pair` returns of both complete lists.
    """
    if len(np.union1d(reference.labels, candidate.labels)) < 2:
        return pair(reference, candidate)
    matched: dict[int, int] = {}
    outside: dict[int, int] = {}
    parts = [pair(reference[:0], candidate[:0])]  # has the titles
    for label in np.intersect1d(reference.labels, candidate.labels):
        rows, columns = (np.flatnonzero(side.labels == label) for side in (reference, candidate))
        part = pair(reference[rows], candidate[columns])
        for all_pairs, pairs in ((matched, part.matched), (outside, part.outside)):
            all_pairs.update((int(rows[row]), int(columns[column])) for row, column in pairs.items())
        parts.append(part)

    def joined(values: Callable[[Pairing], np.ndarray]) -> np.ndarray:
        within = [values(part)[: len(part.matched)] for part in parts]
        return np.concatenate([*within, *(values(part)[len(part.matched) :] for part in parts)])

    gaps = {title: joined(lambda part, title=title: part.gaps[title]) for title in parts[0].gaps}
    return Pairing(joined(lambda part: part.nearness), gaps, matched, outside)


def score_gaps(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return the absolute differences (R, C) float64 of scores (R,) and (C,)."""
    return np.abs(np.subtract.outer(reference.astype(np.float64), candidate.astype(np.float64)))


def maximum_matching(allowed: np.ndarray, preference: np.ndarray, scores: np.ndarray) -> dict[int, int]:
    """Return row -> column of a largest one-to-one matching of the allowed pairs (augmenting paths).

    Args:
        allowed: (R, C) bool.
        preference: (R, C); each row tries its larger values first.
        scores: (R,); rows of higher score come first, and a row once matched stays matched.
    """
    choices = []
    for row, values in zip(allowed, preference, strict=True):
        columns = np.flatnonzero(row)
        choices.append(columns[np.argsort(-values[columns], kind='stable')].tolist())
    owner: dict[int, int] = {}
    for start in np.argsort(-scores, kind='stable').tolist():
        best = itertools.takewhile(
            lambda column, row=start: preference[row, column] == preference[row, choices[row][0]],
            choices[start],
        )
        free = next((column for column in best if column not in owner), None)
        if free is not None:  # of a thousand equal rows each would push the ones before it on
            owner[free] = start
            continue
        path, path_columns = [(start, iter(choices[start]))], []  # depth first, without recursion
        visited: set[int] = set()
        while path:
            column = next((column for column in path[-1][1] if column not in visited), None)
            if column is None:
                path.pop()
                del path_columns[-1:]
                continue
            visited.add(column)
            path_columns.append(column)
            if column not in owner:
                owner.update((column, row) for column, (row, _) in zip(path_columns, path, strict=True))
                break
            path.append((owner[column], iter(choices[owner[column]])))
    return {row: column for column, row in owner.items()}


def nearest_pairs(nearness: np.ndarray, matched: dict[int, int], floor: float) -> dict[int, int]:
    """Return row -> column of the results that have no partner yet, paired by descending nearness.

    Args:
        nearness: (R, C).
        matched: row -> column of those that have a partner.
        floor: smallest nearness of a pair.
    """
    free = nearness >= floor
    free[list(matched.keys())] = False
    free[:, list(matched.values())] = False
    rows, columns = np.nonzero(free)
    pairs: dict[int, int] = {}
    paired_columns: set[int] = set()
    for index in np.argsort(-nearness[rows, columns], kind='stable'):
        row, column = int(rows[index]), int(columns[index])
        if row not in pairs and column not in paired_columns:
            pairs[row] = column
            paired_columns.add(column)
    return pairs


def _tally(
    pairing: Pairing,
    scores: tuple[np.ndarray, np.ndarray],
    limits: tuple[float, float, int | None],
    beyond: Callable[[], Iterable[int]] | None,
    near_ties: Callable[[], NearTies] | None,
    ranked: bool,
) -> tuple[dict[str, int], dict[int, int]]:
    """Return the counts of a `DetectionRow`, and row -> column of the pairs that count.

    Args:
        pairing: the pairs of both lists.
        scores: scores of the reference (R,) and of the candidate (C,).
        limits: `score_thr`, `score_bar` and `capacity` of `match_lists`.
        beyond: returns the candidates (columns) that match a result of the reference if its list is not cut
            off at `capacity`; only these are excused as ties at the cut. None: scores alone tell ties.
        near_ties: returns `NearTies`, whose rows and columns are excused. It is called only if some results
            have no partner, and, unless the results are `ranked`, not more than `MAX_UNPAIRED_SHARE` allows.
            None: nothing is excused.
        ranked: that of `match_lists`.
    """
    (reference, candidate), (score_thr, score_bar, capacity) = scores, limits
    needed, surplus = reference >= score_thr, candidate >= score_thr + score_bar
    partner = {**pairing.matched, **pairing.outside}
    paired_columns = set(partner.values())
    missing = [row for row in np.flatnonzero(needed) if row not in partner]
    extra = [column for column in np.flatnonzero(surplus) if column not in paired_columns]
    matched, outside = (
        {row: column for row, column in pairs.items() if needed[row] or surplus[column]}
        for pairs in (pairing.matched, pairing.outside)
    )
    if capacity and len(reference) == len(candidate) == capacity:
        missing, extra, outside = _without_ties(missing, extra, outside, scores, score_bar, beyond)
    alone, explains_all = len(missing) + len(extra) + 2 * len(outside), False
    are_few = alone <= max(ALLOWED_UNPAIRED, MAX_UNPAIRED_SHARE * (needed.sum() + surplus.sum()))
    if near_ties and alone and (are_few or ranked):
        is_one_decision = ranked or len(missing) + len(extra) <= ONE_DECISION
        odd = {*missing, *outside}, {*extra, *outside.values()}
        rows, columns, explains_all = _unexplained(*odd, near_ties(), is_one_decision)
        if not (are_few or explains_all):
            rows, columns = odd
        missing = [row for row in missing if row in rows]
        extra = [column for column in extra if column in columns]
        outside = {row: column for row, column in outside.items() if row in rows or column in columns}
    still_alone = len(missing) + len(extra) + 2 * len(outside)
    low, candidate_low = ~needed, ~surplus
    low_count = int(low.sum() + candidate_low.sum())
    low_paired = sum(int(low[row]) + int(candidate_low[column]) for row, column in pairing.matched.items())
    counts = dict(
        reference=int(needed.sum()),
        matched=sum(bool(needed[row]) for row in pairing.matched),
        missing=len(missing),
        extra=len(extra),
        outside=len(outside),
        low=low_count,
        low_alone=low_count - low_paired,
        ties=min(alone, ONE_DECISION) if explains_all else alone - still_alone,
    )
    return counts, matched | outside


def _unexplained(
    rows: set[int], columns: set[int], near_ties: NearTies, is_one_decision: bool
) -> tuple[set[int], set[int], bool]:
    """Return the rows that no run lacks, the columns that no run has, and whether one decision explains all.

    There are no more runs once all are explained, or after `PATIENCE` runs that explain no further one.
    """
    idle_runs = 0
    for lost, gained, is_complete in near_ties:
        if is_complete and is_one_decision:
            return set(), set(), True
        count = len(rows) + len(columns)
        rows, columns = rows - lost, columns - gained
        idle_runs = 0 if len(rows) + len(columns) < count else idle_runs + 1
        if idle_runs == PATIENCE or not (rows or columns):
            break
    return rows, columns, False


def _without_ties(
    missing: list[int],
    extra: list[int],
    outside: dict[int, int],
    scores: tuple[np.ndarray, np.ndarray],
    score_bar: float,
    beyond: Callable[[], Iterable[int]] | None,
) -> tuple[list[int], list[int], dict[int, int]]:
    """Return `missing`, `extra` and `outside` without ties at the cut of two full lists.

    As many are left out on either side. Of pairs outside the bars only `beyond` tells a tie: an engine may
    keep the one of two results that overlap, and have equal scores, and PyTorch the other. Measured with
    UniFormer-S and seeded weights in a portrait picture: five boxes without width at its right border, of
    equal scores to 1e-8, are the last of 20, the engine has five others of them, and four pairs overlap by
    half and more.
    """
    cuts = [float(side.min()) for side in scores]
    if abs(cuts[0] - cuts[1]) > score_bar:
        return missing, extra, outside

    def ties(indices: Iterable[int], side: int) -> list[int]:
        return [index for index in indices if scores[side][index] - cuts[side] <= score_bar]

    tied, tied_extra, swapped = ties(missing, 0), ties(extra, 1), {}
    if beyond is not None:
        swapped = {row: column for row, column in outside.items() if ties([row], 0) and ties([column], 1)}
        if swapped or (tied and tied_extra):
            in_longer_list = set(beyond())
            tied_extra = [column for column in tied_extra if column in in_longer_list]
            swapped = {row: column for row, column in swapped.items() if column in in_longer_list}
    excused = min(len(tied), len(tied_extra))
    return (
        [row for row in missing if row not in tied[:excused]],
        [column for column in extra if column not in tied_extra[:excused]],
        {row: column for row, column in outside.items() if row not in swapped},
    )


def with_reason(row: DetectionRow, reason: str) -> DetectionRow:
    """Return a failing copy of a row, with a further reason."""
    return dataclasses.replace(row, passed=False, reason=f'{row.reason}, {reason}' if row.reason else reason)


def in_order_of_scores(row: DetectionRow, scores: np.ndarray) -> DetectionRow:
    """Return a row, failing if the candidate's `scores` (C,) are not in descending order."""
    rising = np.flatnonzero(np.diff(scores) > 0)
    if row.broken or not rising.size:
        return row
    higher_after = scores[rising[0] : rising[0] + 2]
    order = (
        f'results are not in descending order of their scores ({higher_after[0]:.4g} before '
        f'{higher_after[1]:.4g})'
    )
    return with_reason(row, order)


def broken_boxes(name: str, columns: int, *sides: Any) -> str:
    """Return why two lists of boxes cannot be compared; '' if they can.

    Args:
        name: attribute of a list with its boxes.
        columns: number of values of a box.
        sides: the reference and the candidate, with boxes (n, columns), `scores` (n,) and `labels` (n,).
    """
    for side, results in zip(('reference', 'candidate'), sides, strict=True):
        boxes, scores, labels = getattr(results, name), results.scores, results.labels
        if boxes.shape != (len(scores), columns) or labels.shape != (len(scores),):
            return (
                f'{side}: boxes {boxes.shape}, scores {scores.shape} and labels {labels.shape} do not belong '
                f'together'
            )
        if bad := int((~(np.isfinite(boxes).all(axis=1) & np.isfinite(scores))).sum()):
            return f'{side}: {bad} detections have NaN or infinite values'
    return ''


def alone(
    pair: Pair, problem: Callable[[Any, Any], str], pair_by: Callable[..., Pairing]
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each side which results (n,) bool have no partner within the bars on the other.

    `problem` and `pair_by` are those of `match_lists`, and the bars are the defaults of `pair_by`, those of
    float32. All results are alone if there is a problem.
    """
    lonely = np.ones(len(pair.reference), bool), np.ones(len(pair.candidate), bool)
    if not problem(pair.reference, pair.candidate):
        matched = pair_by(pair.reference, pair.candidate).matched
        lonely[0][list(matched.keys())] = False
        lonely[1][list(matched.values())] = False
    return lonely
