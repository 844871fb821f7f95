"""Results decided by rounding: at a threshold, at a cut, or of equal scores."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TIE = 1e-5
"""Largest difference of two scores, or of score and threshold, left to rounding."""
NEAR_TIE = 10 * TIE
"""Scores further apart need no look at PyTorch's own."""
MOST_TIED, ALWAYS_TIED = 0.1, 2
"""Largest share of a sample's results that ties may excuse; and a number that they always may."""
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
        self._scores: dict[tuple[int, int], float | None] = {}

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
                score = self._score_without_limits(1, column)
                choices += [(None, column)] if score is not None and self._at_threshold(score, TIE) else []
        choices += self._exchanged(lone, outside).items()
        choices += self._followers(lone, choices)
        return choices + self._behind_cut((missing, extra), choices)

    def _at_threshold(self, score: float, limit: float) -> bool:
        return any(abs(score - threshold) <= limit for threshold in self.thresholds)

    @functools.cached_property
    def _every(self) -> Any:
        return self.run()

    def _score_without_limits(self, side: int, index: int) -> float | None:
        """Return the score that PyTorch gives a result of either side without limits; None: it has none."""
        if (side, index) not in self._scores:
            (row,) = self.pair_by(self._every, self.sides[side][index : index + 1]).matched or (None,)
            self._scores[side, index] = None if row is None else float(self._every.scores[row])
        return self._scores[side, index]

    def _exchanged(self, lone: tuple[list[int], list[int]], outside: Mapping[int, int]) -> dict[int, int]:
        """Return row -> column of lone results with equal scores in PyTorch."""
        reference, candidate = self.sides
        pairs: dict[int, int] = {}
        for row in lone[0]:
            for column in lone[1]:
                if abs(float(reference.scores[row]) - float(candidate.scores[column])) > NEAR_TIE:
                    continue
                if row in pairs or column in pairs.values() or outside.get(row) == column:
                    continue
                scores = self._score_without_limits(0, row), self._score_without_limits(1, column)
                if None not in scores and abs(scores[0] - scores[1]) <= TIE:
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
                    and (other == 0 or self._score_without_limits(1, follower) is not None)
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
                lower = [column for column in lower if self._score_without_limits(1, column) is not None]
            found += [_single(side, index) for index in lower[: chosen[side].count(None)]]
        return found


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
