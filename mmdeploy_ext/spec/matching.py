"""One-to-one matching of two lists of results by any nearness, and the judgement of all."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.spec.comparison import FLOOR, MOST_ROUNDING, compare_named
from mmdeploy_ext.spec.results import FLOAT32, Bars, DetectionRow

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from mmdeploy_ext.spec.results import Case, Pair, TensorRow


# Results decided by rounding: at a threshold, at a cut, or of equal scores.


TIE = 1e-5
"""Largest difference of two scores, or of score and threshold, left to rounding."""
NEAR_TIE = 10 * TIE
"""Scores further apart need no look at PyTorch's own."""
MOST_TIED, ALWAYS_TIED = 0.1, 2
"""Largest share of a sample's results that ties may excuse; and a number that they always may.

Where most of PyTorch's scores are equal (an empty sweep), choices among results do not count.
"""
Choice = tuple[int | None, int | None]
"""Row of the reference and column of the candidate, or None."""


def numbers_of(settings: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield name and value of each number in nested post-processing settings."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from numbers_of(value)
        else:
            values = value if isinstance(value, list | tuple) else [value]
            yield from ((name, number) for number in values if isinstance(number, float | int))


@dataclasses.dataclass
class Ties:
    """Finds results at a tie: `tied` of `matching.match_lists`.

    PyTorch's own scores decide: a result of the candidate is excused only if PyTorch has it without limits.

    Attributes:
        sides: the reference's and the candidate's results of one sample.
        run: returns PyTorch's results of that sample without limits.
        pair_by: pairs two lists within the bars of the comparison.
        settings: the file's thresholds and limits, nested.
    """

    sides: tuple[Any, Any]
    run: Callable[[], Any]
    pair_by: Callable[[Any, Any], Any]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        numbers, counts = [*numbers_of(self.settings)], [len(side.scores) for side in self.sides]
        self.thresholds = [number for name, number in numbers if 'thr' in name and 'iou' not in name]
        self.is_full = counts[0] == counts[1] and counts[0] in [number for _, number in numbers]
        self.lowest = [float(side.scores.min(initial=np.inf)) + TIE for side in self.sides]
        self._rows: dict[tuple[int, int], int | None] = {}

    def __call__(self, missing: list[int], extra: list[int], outside: Mapping[int, int]) -> list[Choice]:
        if not getattr(self.sides[0], 'scored', True):
            return []
        lone = [*missing, *outside], [*extra, *outside.values()]
        reference, candidate = self.sides
        choices: list[Choice] = [
            (row, None) for row in missing if self._at_threshold(float(reference.scores[row]), TIE)
        ]
        for column in extra:
            if self._at_threshold(float(candidate.scores[column]), NEAR_TIE):
                found = self._without_limits(1, column)
                is_tied = found is not None and self._at_threshold(float(self._every.scores[found]), TIE)
                choices += [(None, column)] if is_tied else []
        choices += self._exchanged(lone).items()
        choices += self._followers(lone, choices)
        return choices + self._behind_cut((missing, extra), choices)

    def _at_threshold(self, score: float, limit: float) -> bool:
        return any(abs(score - threshold) <= limit for threshold in self.thresholds)

    @functools.cached_property
    def _every(self) -> Any:
        return self.run()

    def _without_limits(self, side: int, index: int) -> int | None:
        """Return the row of PyTorch's results without limits that equals a result of either side, or None."""
        if (side, index) not in self._rows:
            (row,) = self.pair_by(self._every, self.sides[side][index : index + 1]).matched or (None,)
            self._rows[side, index] = row
        return self._rows[side, index]

    def _exchanged(self, lone: tuple[list[int], list[int]]) -> dict[int, int]:
        """Return row -> column of lone results that are two results of PyTorch with equal scores."""
        reference, candidate = self.sides
        pairs: dict[int, int] = {}
        for row in lone[0]:
            for column in lone[1]:
                if abs(float(reference.scores[row]) - float(candidate.scores[column])) > NEAR_TIE:
                    continue
                if row in pairs or column in pairs.values():
                    continue
                first, second = self._without_limits(0, row), self._without_limits(1, column)
                if None in (first, second) or first == second:
                    continue
                if abs(float(self._every.scores[first]) - float(self._every.scores[second])) <= TIE:
                    pairs[row] = column
        return pairs

    def _followers(self, lone: tuple[list[int], list[int]], choices: Sequence[Choice]) -> list[Choice]:
        """Return the lone results that a choice of the other side may suppress."""
        chosen = [{pair[side] for pair in choices} - {None} for side in (0, 1)]
        waiting = [(side, index) for side in (0, 1) for index in chosen[side]]
        found: list[Choice] = []
        while waiting:
            side, index = waiting.pop()
            other = 1 - side
            for follower in lone[other]:
                if (
                    follower not in chosen[other]
                    and follows(self.sides[other], follower, self.sides[side], index)
                    and (other == 0 or self._without_limits(1, follower) is not None)
                ):
                    chosen[other].add(follower)
                    found.append(_single(other, follower))
                    waiting.append((other, follower))
        return found

    def _behind_cut(self, alone: Sequence[list[int]], choices: Sequence[Choice]) -> list[Choice]:
        """Return last results of full lists, one per choice only the other list has."""
        if not self.is_full:
            return []
        chosen = [[pair[side] for pair in choices] for side in (0, 1)]
        found: list[Choice] = []
        for side in (0, 1):
            rest = (index for index in alone[side] if index not in chosen[side])
            lower = [index for index in rest if self.sides[side].scores[index] <= self.lowest[1 - side]]
            if side:
                lower = [column for column in lower if self._without_limits(1, column) is not None]
            found += [_single(side, index) for index in lower[: chosen[side].count(None)]]
        return found


def mostly_equal(scores: np.ndarray) -> bool:
    """Whether most results of a list have the score of another one, so that rounding orders them."""
    near = np.diff(np.sort(scores)) <= TIE
    return 2 * np.count_nonzero(np.append(near, False) | np.append(False, near)) > len(scores)


def too_many_ties(count: int, total: int, results: str = 'results') -> str:
    """Return why ties do not excuse `count` of a sample's `total` results, or ''."""
    if count <= max(MOST_TIED * total, ALWAYS_TIED):
        return ''
    return f'{count} of {total} {results} differ at ties, allowed {100 * MOST_TIED:g} %'


def _single(side: int, index: int) -> Choice:
    return (None, index) if side else (index, None)


def follows(results: Any, index: int, others: Any, other: int) -> bool:
    """Whether a result overlaps a better one of its class."""
    if results.labels[index] != others.labels[other] or results.scores[index] > others.scores[other] + TIE:
        return False
    first, second = _area(results, index), _area(others, other)
    return first is not None and bool(
        (np.minimum(first[1], second[1]) > np.maximum(first[0], second[0])).all()
    )


def _area(results: Any, index: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the low and high corner around a box, in the image or on the ground."""
    boxes = getattr(results, 'bboxes_xyxy', None)
    if boxes is not None:
        return boxes[index, :2], boxes[index, 2:]
    boxes = getattr(results, 'boxes', None)
    if boxes is None:
        return None
    radius = np.hypot(*boxes[index, 3:5]) / 2
    return boxes[index, :2] - radius, boxes[index, :2] + radius


@dataclasses.dataclass(frozen=True)
class Pairing:
    """P pairs of reference (row) and candidate (column) results.

    Attributes:
        nearness: (P,) float64, an IoU or minus a distance, of the pairs in `matched`, then `outside`.
        gaps: 'score' and further titles -> (P,) absolute differences of the same pairs.
        matched: row -> column of the pairs within the bars.
        outside: row -> column of other pairs of one object.
        amplified: row of a matched pair -> what PyTorch's own rounding allows beyond the bars.
        beyond: row of a pair outside -> which values are beyond the bars, by how much.
    """

    nearness: np.ndarray
    gaps: dict[str, np.ndarray]
    matched: dict[int, int]
    outside: dict[int, int]
    amplified: dict[int, str] = dataclasses.field(default_factory=dict)
    beyond: dict[int, str] = dataclasses.field(default_factory=dict)


MAX_WIDTH = 64
"""Longer rows, such as masks, do not identify results."""
MAX_LISTED = 20
"""Listed results without a partner."""


def overlap_bars(bars: Bars) -> dict[str, float]:
    """Return the bars of `match_detections` for IoU tasks."""
    return dict(iou_bar=bars.iou, score_bar=bars.score)


def matched_rows(reference: Any, candidate: Any, pairs: Mapping[int, int], bars: Bars) -> list[TensorRow]:
    """Return rows with the cosines of an image's matched boxes, masks and scores, below float32."""
    if not pairs:
        return []
    sides = [
        {
            f'matched {name}': np.asarray(getattr(results, name), np.float32)[list(order)]
            for name in ('bboxes_xyxy', 'masks', 'scores')
            if getattr(results, name, None) is not None
        }
        for results, order in ((reference, pairs.keys()), (candidate, pairs.values()))
    ]
    rows = compare_named(*sides, bars.rtol, 'matched results')
    return bars.judge([dataclasses.replace(row, norm_ratio=None) for row in rows])


def overlap_text(bars: Bars) -> str:
    return f'IoU {bars.iou}'


def iou_figures(pairing: Pairing, worst: Callable[..., float]) -> tuple[dict[str, float], str]:
    """Return fields of a `DetectionRow` and a text on the worst pairs, for an IoU.

    `worst(values, default)` returns the largest of (P,) among the counted pairs.
    """
    iou = -worst(-pairing.nearness, -1.0)
    text = f'worst IoU {iou:.5f}, worst score difference {worst(pairing.gaps["score"]):.2g}'
    for title, gaps in pairing.gaps.items():
        if title != 'score' and (gap := worst(gaps)):
            text += f', {title} off by up to {gap:g}'
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
    tied: Callable[..., list[tuple[int | None, int | None]]] | None = None,
    **bars: float | None,
) -> DetectionRow:
    """Match two lists of results one to one, within a class, in any order.

    - `reference`, `candidate`: results with `scores` (R,), (C,) and `labels`.
    - `problem`: (reference, candidate) -> why they cannot be compared, or ''.
    - `pair_by`: (reference, candidate, score_bar=..., **bars) -> their `Pairing`.
    - `figures`: see `iou_figures`.
    - `score_thr`: score from which on results need a partner.
    - `tied`: (rows and columns without a partner, row -> column of pairs outside the bars) -> pairs at a
      tie (one side may be None), see `Ties`; None excuses no result.
    """
    if why := problem(reference, candidate):
        count, candidate_count = len(reference.scores), len(candidate.scores)
        return DetectionRow(image, count, 0, count, candidate_count, 0.0, 1.0, False, why, broken=True)
    pairing = pair_by(reference, candidate, score_bar=score_bar, **bars)
    needed, surplus = reference.scores >= score_thr, candidate.scores >= score_thr + score_bar
    choices: list[tuple[int | None, int | None]] = []

    def without_partner() -> tuple[list[int], list[int], dict[int, int]]:
        rows, columns = (set(side) for side in zip(*choices, strict=True)) if choices else (set(), set())
        near = {
            row: column
            for row, column in pairing.outside.items()
            if row not in rows and column not in columns
        }
        rows |= {*pairing.matched, *near}
        columns |= {*pairing.matched.values(), *near.values()}
        return (
            [row for row in np.flatnonzero(needed).tolist() if row not in rows],
            [column for column in np.flatnonzero(surplus).tolist() if column not in columns],
            {row: column for row, column in near.items() if needed[row] or surplus[column]},
        )

    missing, extra, outside = without_partner()
    low_rows = [row for row in np.flatnonzero(~needed).tolist() if row not in pairing.matched]
    matched_columns = {*pairing.matched.values()}
    low_columns = [column for column in np.flatnonzero(~surplus).tolist() if column not in matched_columns]
    if tied and (missing or extra or outside or low_rows or low_columns):
        choices = tied([*missing, *low_rows], [*extra, *low_columns], outside)
        missing, extra, outside = without_partner()

    all_pairs = [*pairing.matched.items(), *pairing.outside.items()]

    def worst_of(pairs: dict[int, int]) -> Callable[..., float]:
        chosen = [
            index
            for index, (row, column) in enumerate(all_pairs)
            if (needed[row] or surplus[column]) and row in pairs
        ]

        def worst(values: np.ndarray, default: float = 0.0) -> float:
            return float(values[chosen].max()) if chosen else default

        return worst

    worst = worst_of(pairing.matched)
    measured, _ = figures(pairing, worst)
    counts = dict(missing=len(missing), extra=len(extra), outside=len(outside))
    reasons = [f'{counts[key]} {key}' for key in ('missing', 'extra') if counts[key]]
    if outside:
        _, text = figures(pairing, worst_of(outside))
        reasons.append(f'{len(outside)} pair{"s" if len(outside) > 1 else ""} outside the bars ({text})')
    count = len(pairing.amplified) + (0 if mostly_equal(reference.scores) else len(choices))
    too_many = too_many_ties(count, len(reference.scores))
    reasons += [too_many] if too_many else []
    chosen = [{pair[side] for pair in choices} for side in (0, 1)]
    low_alone = len({*low_rows} - chosen[0]) + len({*low_columns} - chosen[1])
    nearest = dict(zip([*pairing.matched, *pairing.outside], pairing.nearness.tolist(), strict=True))
    lines = [f'only in PyTorch: {_one(reference, row)}' for row in missing]
    lines += [f'only in the file: {_one(candidate, column)}' for column in extra]
    lines += [
        f'{_one(reference, row)} of PyTorch, nearest {_one(candidate, column)}, {abs(nearest[row]):.6g}'
        + (f': {pairing.beyond[row]}' if row in pairing.beyond else '')
        for row, column in outside.items()
    ]
    ties = [
        ' or '.join(
            _one(side, index) for side, index in ((reference, row), (candidate, column)) if index is not None
        )
        for row, column in choices
    ]
    ties += [f'{_one(reference, row)}: {text}' for row, text in pairing.amplified.items()]
    fields = dict(worst_iou=1.0, worst_score=worst(pairing.gaps['score'])) | counts | measured
    return DetectionRow(
        image,
        reference=int(needed.sum()),
        matched=sum(bool(needed[row]) for row in pairing.matched)
        + sum(None not in pair and bool(needed[pair[0]]) for pair in choices),
        **fields,
        low=int((~needed).sum() + (~surplus).sum()),
        low_alone=low_alone,
        passed=not reasons,
        reason=', '.join(reasons),
        broken=bool(too_many),
        alone=tuple(lines[:MAX_LISTED]),
        excused=tuple(ties),
    )


def _one(results: Any, index: int) -> str:
    return f'class {int(results.labels[index])} at {float(results.scores[index]):.6f}'


def pair_lists(
    reference: Any,
    candidate: Any,
    near: np.ndarray,
    nearness: np.ndarray,
    floor: float,
    score_bar: float,
    other_gaps: Sequence[tuple[str, np.ndarray, float]] = (),
    rounding: Mapping[str, np.ndarray] | None = None,
) -> Pairing:
    """Match as many results as possible within the bars, then pair the rest by nearness.

    - `near`: (R, C) bool, near enough to match.
    - `nearness`: (R, C), larger is nearer; below `floor` between classes.
    - `floor`: smallest nearness of a pair outside the bars.
    - `other_gaps`: title, differences (R, C) and bar of each further value.
    - `rounding`: title -> (R,) differences that PyTorch's own rounding makes, which widen the bars.
    """
    gaps = [('score', score_gaps(reference.scores, candidate.scores), score_bar), *other_gaps]
    wide = {}
    for title, _, bar in gaps:
        own = (rounding or {}).get(title, np.zeros(len(reference.scores)))
        wide[title] = np.clip(own, bar, MOST_ROUNDING * bar)[:, None]
    allowed = np.logical_and.reduce([near, *(gap <= wide[title] for title, gap, _ in gaps)])
    matched = maximum_matching(allowed, nearness, reference.scores)
    outside = nearest_pairs(nearness, matched, floor)
    pairs = [*matched, *outside], [*matched.values(), *outside.values()]

    def over(pairs: Mapping[int, int]) -> dict[int, str]:
        texts = {
            row: ', '.join(
                f'{title} off by {gap[row, column]:.2g}, allowed {wide[title][row, 0]:.2g}'
                for title, gap, bar in gaps
                if not gap[row, column] <= bar
            )
            for row, column in pairs.items()
        }
        return {row: text for row, text in texts.items() if text}

    values = {title: gap[pairs] for title, gap, _ in gaps}
    return Pairing(nearness[pairs], values, matched, outside, over(matched), over(outside))


def pair_within_labels(reference: Any, candidate: Any, pair: Callable[[Any, Any], Pairing]) -> Pairing:
    """Pair two lists per label: all pairs of thousands of results need gigabytes."""
    if len(np.union1d(reference.labels, candidate.labels)) < 2:
        return pair(reference, candidate)
    matched: dict[int, int] = {}
    outside: dict[int, int] = {}
    beyond: dict[int, str] = {}
    parts = [pair(reference[:0], candidate[:0])]  # for its titles
    for label in np.intersect1d(reference.labels, candidate.labels):
        rows, columns = (np.flatnonzero(side.labels == label) for side in (reference, candidate))
        part = pair(reference[rows], candidate[columns])
        for all_pairs, pairs in ((matched, part.matched), (outside, part.outside)):
            all_pairs.update((int(rows[row]), int(columns[column])) for row, column in pairs.items())
        beyond.update((int(rows[row]), text) for row, text in part.beyond.items())
        parts.append(part)

    def joined(values: Callable[[Pairing], np.ndarray]) -> np.ndarray:
        within = [values(part)[: len(part.matched)] for part in parts]
        return np.concatenate([*within, *(values(part)[len(part.matched) :] for part in parts)])

    gaps = {title: joined(lambda part, title=title: part.gaps[title]) for title in parts[0].gaps}
    return Pairing(joined(lambda part: part.nearness), gaps, matched, outside, beyond=beyond)


def score_gaps(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return the absolute differences (R, C) float64 of scores (R,) and (C,)."""
    return np.abs(np.subtract.outer(reference.astype(np.float64), candidate.astype(np.float64)))


def maximum_matching(allowed: np.ndarray, preference: np.ndarray, scores: np.ndarray) -> dict[int, int]:
    """Return row -> column of a largest one-to-one matching of `allowed` (R, C) pairs (augmenting paths).

    Rows go by descending `scores` (R,), trying larger `preference` (R, C) first; matched rows stay matched.
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
        if free is not None:  # each of a thousand equal rows would move all before it
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
    """Return row -> column of unmatched results by descending `nearness` (R, C), at least `floor`."""
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


def with_reason(row: DetectionRow, reason: str) -> DetectionRow:
    return dataclasses.replace(row, passed=False, reason=f'{row.reason}, {reason}' if row.reason else reason)


def in_order_of_scores(row: DetectionRow, scores: np.ndarray) -> DetectionRow:
    """Fail a row if the candidate's `scores` (C,) do not descend."""
    rising = np.flatnonzero(np.diff(scores) > 0)
    if row.broken or not rising.size:
        return row
    higher_after = scores[rising[0] : rising[0] + 2]
    order = (
        f'results are not in descending order of their scores ({higher_after[0]:.4g} before '
        f'{higher_after[1]:.4g})'
    )
    return with_reason(row, order)


def in_order_of(
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    names: Sequence[str],
    rtol: float,
) -> dict[str, np.ndarray]:
    """Return outputs in the order of the reference's rows, if each row has an equal partner.

    - `reference`, `outputs`: name -> array (R, ...).
    - `names`: outputs with common rows.
    - `rtol`: allowed difference, relative to an output's largest reference value; at least `FLOOR`.
    """
    counts = {side[name].shape[:1] for side in (reference, outputs) for name in names if name in side}
    if len(counts) != 1 or any(name not in outputs or name not in reference for name in names):
        return dict(outputs)
    (count,) = counts.pop() or (0,)
    if count == 0:
        return dict(outputs)
    allowed, nearness, has_narrow = np.ones((count, count), bool), np.zeros((count, count)), False
    for name in names:
        expected, got = (side[name].reshape(count, -1).astype(np.float64) for side in (reference, outputs))
        if expected.shape != got.shape or expected.shape[1] > MAX_WIDTH:
            continue
        has_narrow = True
        distance = np.zeros((count, count))
        for column in range(expected.shape[1]):  # all columns at once need gigabytes
            np.maximum(distance, np.abs(np.subtract.outer(expected[:, column], got[:, column])), distance)
        scale = float(np.abs(expected).max(initial=0))
        tolerance = max(rtol * scale, FLOOR)
        allowed &= distance <= (tolerance if reference[name].dtype.kind == 'f' else 0)
        nearness -= distance / (scale or 1.0)
    if not has_narrow or allowed.diagonal().all():  # several equal rows keep their order
        return dict(outputs)
    partners = maximum_matching(allowed, nearness, np.zeros(count))
    if len(partners) < count:
        return dict(outputs)
    order = [partners[row] for row in range(count)]
    return {name: array[order] if name in names else array for name, array in outputs.items()}


def is_tied(array: np.ndarray) -> bool:
    """Whether floats are equal along their last axis, as a top-k's scores may be."""
    is_row = array.dtype.kind == 'f' and array.ndim > 0 and array.shape[-1] > 1
    return is_row and bool((np.ptp(array, -1) <= FLOOR).all())


def tied_choices(reference: Mapping[str, np.ndarray], scores: Collection[str]) -> dict[str, str]:
    """Return integer outputs -> one of the descending `scores` of their shape that has equal neighbours.

    A top-k may choose any of the neighbours.
    """
    shapes = {reference[name].shape: name for name in scores if name in reference and _runs(reference[name])}
    return {
        n: shapes[array.shape]
        for n, array in reference.items()
        if array.dtype.kind in 'iu' and array.shape in shapes
    }


def _runs(scores: np.ndarray) -> list[tuple[int, int, int]]:
    """Return row, first and end of neighbours with equal values along the last axis."""
    if scores.dtype.kind != 'f' or not scores.ndim or not scores.size:
        return []
    rows, found = scores.reshape(-1, scores.shape[-1]), []
    steps = np.diff(rows, axis=1)
    if not (steps <= FLOOR).all():  # no top-k
        return []
    is_equal = steps >= -FLOOR
    for row in np.flatnonzero(is_equal.any(axis=1)):
        edges = np.flatnonzero(np.diff(np.r_[False, is_equal[row], False].astype(int)))
        found += [(int(row), int(begin), int(end) + 1) for begin, end in edges.reshape(-1, 2)]
    return found


def with_choices_of(
    reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], scores: Collection[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return outputs with equal scores in the reference's order, and name -> places chosen otherwise.

    Chosen otherwise are results at the end of a list whose scores equal the last: the reference has others,
    and nothing tells whether those of `outputs` are right.
    """
    outputs, others = dict(outputs), {}
    for name, score in tied_choices(reference, scores).items():
        expected, got = reference[name], outputs.get(name)
        if got is None or got.shape != expected.shape or np.array_equal(expected, got):
            continue
        count = expected.shape[-1]
        expected, got = expected.reshape(-1, count), got.reshape(-1, count)
        order, is_other = np.tile(np.arange(count), (len(got), 1)), np.zeros(got.shape, bool)
        for row, begin, end in _runs(reference[score]):
            run = slice(begin, end)
            ranks = np.argsort(expected[row, run], kind='stable'), np.argsort(got[row, run], kind='stable')
            if np.array_equal(expected[row, run][ranks[0]], got[row, run][ranks[1]]):
                order[row, run][ranks[0]] = begin + ranks[1]
            elif end == count == len({*expected[row]}) == len({*got[row]}):
                is_other[row, run] = True
        shape = reference[score].shape
        for along, array in outputs.items():
            if array.shape[: len(shape)] == shape and along in reference:
                rows = array.reshape(-1, count, *array.shape[len(shape) :])
                places = order.reshape(*order.shape, *[1] * (rows.ndim - 2))
                outputs[along] = np.take_along_axis(rows, places, axis=1).reshape(array.shape)
                if is_other.any() and along != score:
                    others[along] = others.get(along, False) | is_other.reshape(shape)
    return outputs, others


def broken_boxes(reference: Any, candidate: Any, name: str = 'bboxes_xyxy', columns: int = 4) -> str:
    """Return why boxes cannot be compared, or ''."""
    for side, results in dict(reference=reference, candidate=candidate).items():
        boxes, scores, labels = getattr(results, name), results.scores, results.labels
        if boxes.shape != (len(scores), columns) or labels.shape != (len(scores),):
            return (
                f'{side}: boxes {boxes.shape}, scores {scores.shape} and labels {labels.shape} do not match'
            )
        if bad := int((~(np.isfinite(boxes).all(axis=1) & np.isfinite(scores))).sum()):
            return f'{side}: {bad} detections have NaN or infinite values'
    return ''


def alone(
    pair: Pair, problem: Callable[[Any, Any], str], pair_by: Callable[..., Pairing]
) -> tuple[np.ndarray, np.ndarray]:
    """Return per side the results (n,) bool without a partner in float32's bars."""
    lonely = np.ones(len(pair.reference), bool), np.ones(len(pair.candidate), bool)
    if not problem(pair.reference, pair.candidate):
        matched = pair_by(pair.reference, pair.candidate).matched
        lonely[0][list(matched.keys())] = False
        lonely[1][list(matched.values())] = False
    return lonely


MIN_MATCHED = 10
"""Smallest number of matched results; toy inputs have 14 to 300."""
MIN_INPUTS = 3
"""Smallest number of inputs with a matched result (or all)."""
MAX_LOW_ALONE_SHARE = 0.005
"""Largest share of a kit's results below the score threshold without a partner."""
ALLOWED_LOW_ALONE = 2
"""Low results always allowed without a partner: one on each side of a cut."""
MAX_REST = 0.1
"""Largest share of results without a partner end to end if each part was compared (`Case.chained`)."""
LOW = 'low', 'low_alone'
ADVICE_FOR_IMAGES = (
    'use images with objects that this model finds (--input-img, --images), and a trained checkpoint'
)


def too_few(matched: Sequence[int], unit: str, advice: str) -> list[str]:
    """Return why the matched results per input are too few, or []."""
    total, inputs_with_results = sum(matched), sum(count > 0 for count in matched)
    needed_inputs = min(MIN_INPUTS, len(matched))
    if total >= MIN_MATCHED and inputs_with_results >= needed_inputs:
        return []
    return [
        f'only {total} results were matched, in {inputs_with_results} of {len(matched)} {unit}s; a '
        f'proof needs {MIN_MATCHED} or more, in {needed_inputs} or more: {advice}'
    ]


def accept_rest(cases: Sequence[Case]) -> tuple[list[Case], list[str]]:
    """Let few results of chained cases lack a partner; return cases, and lines on these results.

    Other cases allow it only at a tie.
    """
    if not rest_is_small(cases):
        return list(cases), []
    chained = [case for case in cases if case.chained]
    rows = [(case.name, row) for case in chained for row in case.detections if not row.broken]
    lines = [f'{name}: {line}' for name, row in rows for line in row.alone]
    return [
        dataclasses.replace(case, detections=tuple(map(_accepted, case.detections))) if case.chained else case
        for case in cases
    ], lines


def rest_is_small(cases: Sequence[Case]) -> bool:
    rows = [row for case in cases if case.chained for row in case.detections if not row.broken]
    missing, extra, outside, low, low_alone, total = (
        sum(getattr(row, key) for row in rows)
        for key in ('missing', 'extra', 'outside', 'low', 'low_alone', 'reference')
    )
    of_both = missing + extra + 2 * outside + low_alone
    return max(missing, extra) + outside <= MAX_REST * total and of_both <= MAX_REST * (2 * total + low)


def _accepted(row: DetectionRow) -> DetectionRow:
    is_alone = not row.broken and (row.missing or row.extra or row.outside)
    return dataclasses.replace(row, passed=True) if is_alone else row


def total_reasons(
    cases: Sequence[Case],
    bars: Bars = FLOAT32,
    unit: str = 'input',
    found_in: str = 'image',
    advice: str = ADVICE_FOR_IMAGES,
) -> list[str]:
    """Return why a proof fails beyond single cases.

    `unit` names an input, `found_in` an input with results; `advice` is for too few matches.
    """
    rows = [row for case in cases for row in case.detections]
    if not rows and not any(case.tensors for case in cases):
        return ['nothing was compared']
    if rows and not sum(row.reference for row in rows):
        return [f'nothing was found in any {found_in}, so nothing was matched: {advice}']
    if not rows or not all(case.passed for case in cases):  # failed cases say more
        return []
    matched = [sum(row.matched for row in (*case.detections, *case.substituted)) for case in cases]
    reasons = too_few(matched, unit, advice)
    judged = [case for case in cases if not (case.chained and rest_is_small(cases))]
    low, alone = (sum(getattr(row, key) for case in judged for row in case.detections) for key in LOW)
    if bars.is_float32 and alone:
        reasons.append(
            f'{alone} of {low} results below the score threshold have no partner on '
            f'the other side, and no tie explains them'
        )
    return reasons


def lone_low_results(low: int, alone: int) -> list[str]:
    """Return the failure of too many unmatched low results, or []."""
    if alone <= max(ALLOWED_LOW_ALONE, MAX_LOW_ALONE_SHARE * low):
        return []
    return [
        f'{alone} of {low} results below the score threshold have no partner on the other side, which is '
        f'more than {100 * MAX_LOW_ALONE_SHARE:g} %'
    ]
