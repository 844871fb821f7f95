"""Pairing of memory rows of two engines: the propagated top-k of queries, and ties in it. Needs numpy only.

Glossary: Q queries, K rows that a frame adds to the memory, P rows that become queries of the next frame, n
memory rows.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.families.sequence import MemorySpec
    from mmdeploy_ext.runtime.frames import StepResult, StreamState

SAME_ROW = 5e-3
"""Metres and m/s: a memory row this close to a query's prediction is that query's."""
CLEARLY_NEARER = 1e-4
"""Metres: by so much another query has to fit a memory row better than the one that its score puts there; the
float32 noise of a memory in global coordinates is below it."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """The queries that one engine put into its memory.

    Attributes:
        scores: (Q,) float64, best class of each query by the last layer.
        queries: (K,) int64, the query of each new memory row.
    """

    scores: np.ndarray
    queries: np.ndarray


@dataclasses.dataclass(frozen=True)
class RowDifference:
    """A new memory row that two engines gave to different queries, each by its own index; the scores' gap."""

    row: int
    reference: int
    candidate: int
    gap: float


def best_scores(logits: np.ndarray) -> np.ndarray:
    """Return the score (Q,) float64 of the best class of every query, by the last layer's logits."""
    best = np.asarray(logits, np.float64)[-1, 0].max(-1)
    with np.errstate(invalid='ignore'):
        return np.exp(-np.logaddexp(0.0, -best))


def select_queries(
    outputs: Mapping[str, np.ndarray], memory: Mapping[str, np.ndarray] | None, spec: MemorySpec
) -> Selection:
    """Return which queries an engine put into its memory.

    The scores say which ones they should be, the places in the memory which ones they are: a row that fits
    another query clearly better is that query's. A row that fits none is taken for the one it should be (its
    values are compared anyway). Without places in the memory, or without a memory, the scores alone decide.
    """
    scores = best_scores(outputs[spec.scores])
    expected = np.argsort(-scores, kind='stable')[: spec.topk]
    rows = min(spec.topk, len(expected))
    if memory is None or any(memory[name].shape[1] < rows for name, _, _ in spec.places):
        return Selection(scores, expected)
    memory_places = np.concatenate([memory[name][0, :rows] for name, _, _ in spec.places], 1)
    query_places = np.concatenate(
        [outputs[name][-1, 0][:, [*columns]] for _, name, columns in spec.places], 1
    )
    gaps = memory_places.astype(np.float64)[:, None] - query_places.astype(np.float64)[None]
    distance = np.abs(gaps).max(-1)
    distance[~np.isfinite(distance)] = np.inf
    nearest, index = distance.argmin(1), np.arange(rows)
    is_other = distance[index, nearest] <= SAME_ROW
    is_other &= distance[index, nearest] + CLEARLY_NEARER < distance[index, expected]
    return Selection(scores, np.where(is_other, nearest, expected))


@dataclasses.dataclass(frozen=True)
class Followed:
    """The pairing of both engines' memories after a frame.

    Attributes:
        queries: (Q,) the candidate's query for each of the reference's, -1 for none; None: all by index.
        rows: (n,) likewise of the memory's rows.
        ties: new rows that differ by a tie.
        fault: why rows differ by more than a tie.
        parted: memories of the same rows, in whatever order, hold other ones since this frame, by scores
            that are a tie without any allowance for errors.
    """

    queries: np.ndarray | None = None
    rows: np.ndarray | None = None
    ties: int = 0
    fault: str = ''
    parted: bool = False


class RowPairing:
    """Keeps, along a drive, which candidate row and query belongs to which of the reference.

    Without ties row i belongs to row i. A tie swaps rows, or takes a row that the other engine lacks; the
    swapped rows become queries of the next frame and older rows of the following ones.

    Attributes:
        rows: (n,) int64, the candidate's memory row for each of the reference; -1 for none; None while the
            memories are equal.
    """

    def __init__(self, spec: MemorySpec) -> None:
        self.spec = spec
        self.rows: np.ndarray | None = None

    def forget(self) -> None:
        """Note that both memories are equal again: reset, or the candidate got the reference's."""
        self.rows = None

    @property
    def affected(self) -> bool:
        """Whether a row differs in place."""
        return self.rows is not None and bool((self.rows != np.arange(len(self.rows))).any())

    def queries(self, count: int) -> np.ndarray:
        """Return the candidate's query (Q,) int64 for each of the reference's in this frame; -1 for none."""
        partners = np.arange(count)
        if self.rows is not None:
            propagated = min(self.spec.propagated, count, len(self.rows))
            head = self.rows[:propagated]
            inside = (head >= 0) & (head < propagated)
            partners[count - propagated :] = np.where(inside, count - propagated + head, -1)
        return partners

    def advance(
        self, reference: Selection, candidate: Selection, partners: np.ndarray, num_rows: int
    ) -> list[RowDifference]:
        """Follow the memory of n rows over a frame by the partners of `queries`; return differing rows."""
        to_reference = {int(partner): query for query, partner in enumerate(partners) if partner >= 0}
        candidate_row = {int(query): row for row, query in enumerate(candidate.queries)}
        pairs = zip(reference.queries.tolist(), candidate.queries.tolist(), strict=True)
        differences = []
        for row, (expected, got) in enumerate(pairs):
            same = to_reference.get(got)
            if same != expected:
                score = candidate.scores[got] if same is None else reference.scores[same]
                gap = abs(float(reference.scores[expected] - score))
                differences.append(RowDifference(row, expected, got, gap))
        new = [candidate_row.get(int(partners[query]), -1) for query in reference.queries]
        old_count = max(num_rows - len(new), 0)
        old = np.arange(old_count) if self.rows is None else self.rows[:old_count]
        old = np.where((old >= 0) & (old < old_count), old + len(new), -1)
        self.rows = np.concatenate([np.array(new, np.int64), old])[:num_rows]
        return differences

    def follow(
        self,
        results: Sequence[StepResult],
        states: Sequence[StreamState | None],
        tie: float,
        max_error: float,
    ) -> Followed:
        """Follow the memory over a frame, and tell ties from errors.

        Args:
            results: of the reference and of the candidate.
            states: their memories afterwards.
            tie: scores this close, beyond twice the frame's own score error, are a tie.
            max_error: upper bound of the frame's own score error.
        """
        sides = [result.outputs for result in results]
        is_complete = all(name in outputs for outputs in sides for name in self.spec.needed)
        scores = [outputs[self.spec.scores] for outputs in sides] if is_complete else []
        if not is_complete or None in states or scores[0].shape[1:] != scores[1].shape[1:]:
            return Followed()
        queries = self.queries(scores[0].shape[-2])
        tensors = [state.tensors for state in states]
        selections = [select_queries(*side, self.spec) for side in zip(sides, tensors, strict=True)]
        allowed = tie + 2 * min(score_error(*selections, queries), max_error)
        affected, num_rows = self.affected, tensors[0][self.spec.places[0][0]].shape[1]
        same = bool((queries >= 0).all()) and (self.rows is None or bool((self.rows >= 0).all()))
        differing = self.advance(*selections, queries, num_rows)
        beyond, fault = [row for row in differing if not row.gap <= allowed], ''
        if beyond and not affected:  # rows of an earlier tie give other queries: the choice may differ
            worst = max(beyond, key=lambda row: row.gap)
            places = f'row {worst.row}: queries {worst.reference} and {worst.candidate}'
            fault = f'{places}, scores {worst.gap:.2g} apart, allowed {allowed:.2g}'
        new = self.rows[: len(selections[0].queries)]
        parted = same and bool((new < 0).any()) and all(row.gap <= tie for row in differing)
        return Followed(queries, self.rows, len(differing) - len(beyond), fault, parted)


def score_error(reference: Selection, candidate: Selection, partners: np.ndarray) -> float:
    """Return the largest score difference of queries that belong together; 0 if none is finite."""
    paired = partners >= 0
    gaps = np.abs(reference.scores[paired] - candidate.scores[partners[paired]])
    return float(gaps[np.isfinite(gaps)].max(initial=0.0))
