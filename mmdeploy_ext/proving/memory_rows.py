"""Pairing of memory rows of two engines: the propagated top-k of queries and ties in it. Needs numpy only."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
    from mmdeploy_ext.spec.memory import InstanceRows, MemorySpec

SAME_ROW = 5e-3
"""Metres and m/s: largest difference of a memory row from its query, and of paired instances."""
CLEARLY_NEARER = 1e-4
"""Metres: a query has to be nearer by this to override the order of scores; above the float32 noise of a
memory in global coordinates.
"""
NO_ID = -1
"""Id of an instance without a track."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """One frame after both engines ran it: results, and memories after it (None without one)."""

    frame: Frame
    expected: StepResult
    got: StepResult
    expected_state: StreamState | None
    got_state: StreamState | None


@dataclasses.dataclass(frozen=True)
class QuerySelection:
    """The queries that one engine put into its memory.

    Attributes:
        scores: (Q,) float64 best class score by the last layer; with an `InstancePairing` the confidence.
        queries: (K,) int64, the query of each new (first) memory row.
    """

    scores: np.ndarray
    queries: np.ndarray


@dataclasses.dataclass(frozen=True)
class RowDifference:
    """A new memory row into which two engines put different queries.

    `gap` is the difference of the queries' scores.
    """

    row: int
    reference: int
    candidate: int
    gap: float


def best_scores(logits: np.ndarray) -> np.ndarray:
    """Return each query's best class score (Q,), of logits (layers, 1, Q, classes)."""
    best = np.asarray(logits, np.float64)[-1, 0].max(-1)
    with np.errstate(invalid='ignore'):
        return np.exp(-np.logaddexp(0.0, -best))


def select_queries(
    outputs: Mapping[str, np.ndarray], memory: Mapping[str, np.ndarray] | None, spec: MemorySpec
) -> QuerySelection:
    scores = best_scores(outputs[spec.scores])
    expected = np.argsort(-scores, kind='stable')[: spec.topk]
    rows = min(spec.topk, len(expected))
    if memory is None or any(memory[name].shape[1] < rows for name, _, _ in spec.places):
        return QuerySelection(scores, expected)
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
    return QuerySelection(scores, np.where(is_other, nearest, expected))


@dataclasses.dataclass(frozen=True)
class Followed:
    """The pairing of both memories after a frame.

    Attributes:
        queries: (Q,) the candidate's query for each of the reference's, -1 for none; None: equal.
        rows: (n,) the same of the memory's rows.
        ties: new rows (of an `InstancePairing` also queries) that differ by a tie.
        fault: why rows differ by more than a tie, or ''.
        parted: a tie made the memories differ in this frame.
    """

    queries: np.ndarray | None = None
    rows: np.ndarray | None = None
    ties: int = 0
    fault: str = ''
    parted: bool = False


class RowPairing:
    """Keeps the pairs of the reference's and the candidate's rows and queries along a drive.

    A tie swaps rows, or takes a row that the other engine lacks; swapped rows become queries of the next
    frame.
    """

    def __init__(self, spec: MemorySpec) -> None:
        self.spec = spec
        self.rows: np.ndarray | None = None

    def forget(self) -> None:
        self.rows = None

    def names(self, state: StreamState) -> list[str]:
        """Return the tensors of a memory that have the rows."""
        return [name for name, values in state.tensors.items() if values.ndim > 1]

    @property
    def affected(self) -> bool:
        return self.rows is not None and bool((self.rows != np.arange(len(self.rows))).any())

    def queries(self, count: int) -> np.ndarray:
        """Return the candidate's query (count,) for each of the reference's ; -1 for none."""
        partners = np.arange(count)
        if self.rows is not None:
            propagated = min(self.spec.propagated, count, len(self.rows))
            head = self.rows[:propagated]
            inside = (head >= 0) & (head < propagated)
            partners[count - propagated :] = np.where(inside, count - propagated + head, -1)
        return partners

    def advance(
        self, reference: QuerySelection, candidate: QuerySelection, partners: np.ndarray, num_rows: int
    ) -> list[RowDifference]:
        """Update `rows` by a frame's queries; return new rows that differ.

        `partners` (Q,) is the result of `queries`, `num_rows` the size of the memory.
        """
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

    def follow(self, moment: Moment, tie: float, max_error: float) -> Followed:
        """Follow the memories over a frame, and tell ties from errors."""
        sides = [moment.expected.outputs, moment.got.outputs]
        states = moment.expected_state, moment.got_state
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


def score_error(reference: QuerySelection, candidate: QuerySelection, partners: np.ndarray) -> float:
    paired = partners >= 0
    gaps = np.abs(reference.scores[paired] - candidate.scores[partners[paired]])
    return float(gaps[np.isfinite(gaps)].max(initial=0.0))


class InstancePairing(RowPairing):
    """Keeps the pairs of instances, memory rows and tracks along a drive.

    `tracks`: id of the reference -> id of the candidate; new ids follow the order of rows, which ties change.
    """

    def __init__(self, spec: InstanceRows) -> None:
        self.spec = spec
        self.forget()

    def forget(self) -> None:
        super().forget()
        self.tracks: dict[int, int] = {}

    def follow(self, moment: Moment, tie: float, max_error: float) -> Followed:
        spec, sides = self.spec, [moment.expected.outputs, moment.got.outputs]
        states = moment.expected_state, moment.got_state
        needed = {*spec.per_query, spec.confidence, *spec.ids[:1]}
        if None in states or any(needed - side.keys() for side in sides) or spec.first_scores not in sides[0]:
            return Followed()  # a kit has no first scores
        places = [side[spec.place[1]][0].astype(np.float64) for side in sides]
        if places[0].shape != places[1].shape:
            return Followed()
        queries, had_same_rows = pair_rows(*places), self.rows is None or bool((self.rows >= 0).all())
        selections = [
            QuerySelection(side[spec.confidence][0].astype(np.float64), rows_kept(place, state, spec))
            for side, place, state in zip(sides, places, states, strict=True)
        ]
        reference, candidate = selections
        paired = queries >= 0
        errors = np.abs(reference.scores[paired] - candidate.scores[queries[paired]])
        allowed = tie + 2 * min(float(errors.max(initial=0.0)), max_error)
        if had_same_rows:
            first_scores = sides[0][spec.first_scores][0].astype(np.float64)
            queries = pair_absent(queries, at_the_cut(first_scores, allowed))
        faults = [self._wrong_order(sides[0], queries, allowed), not_the_best(candidate)]
        differing = self.advance(reference, candidate, queries, len(reference.queries))
        beyond = [row for row in differing if not row.gap <= allowed]
        if beyond:
            worst = max(beyond, key=lambda row: row.gap)
            places_text = f'row {worst.row}: instances {worst.reference} and {worst.candidate}'
            faults.append(f'{places_text}, confidences {worst.gap:.2g} apart, allowed {allowed:.2g}')
        ties = len(differing) - len(beyond) + int((queries != np.arange(len(queries))).sum())
        if spec.ids:
            faults.append(self._wrong_track(sides, states, queries, ties > 0))
        parted = bool((self.rows < 0).any()) and all(row.gap <= tie for row in differing)
        fault = next(filter(None, faults), '')
        return Followed(queries, self.rows, ties, fault, parted and not fault)

    def names(self, state: StreamState) -> list[str]:
        return [*self.spec.tensors]

    def reordered(self, state: StreamState) -> dict[str, np.ndarray]:
        """Return the rows of the candidate's memory in the reference's order; {}: they are, or some lack."""
        rows = self.rows
        if rows is None or not self.affected or (rows < 0).any():
            return {}
        self.rows = None
        return {name: state.tensors[name][:, rows] for name in self.names(state)}

    def _wrong_order(self, outputs: Mapping[str, np.ndarray], queries: np.ndarray, allowed: float) -> str:
        moved = np.flatnonzero((queries >= 0) & (queries != np.arange(len(queries))))
        if not len(moved):
            return ''
        scores = outputs[self.spec.first_scores][0].astype(np.float64)
        gaps = np.abs(scores[moved] - scores[queries[moved]])
        gaps[~np.isfinite(gaps)] = np.inf  # a kept instance, whose row the memory decides
        worst = int(gaps.argmax())
        if gaps[worst] <= allowed:
            return ''
        return (
            f'instances {moved[worst]} and {queries[moved[worst]]} are exchanged, first scores '
            f'{gaps[worst]:.2g} apart, allowed {allowed:.2g}'
        )

    def _wrong_track(
        self,
        sides: Sequence[Mapping[str, np.ndarray]],
        states: Sequence[StreamState],
        queries: np.ndarray,
        is_tied: bool,
    ) -> str:
        output, _, next_id = self.spec.ids
        expected, got = (side[output][0] for side in sides)
        for row, query in enumerate(queries):
            if query < 0:
                continue
            track, candidate_track = int(expected[row]), int(got[query])
            if NO_ID in (track, candidate_track):
                if track != candidate_track:
                    return f'instance {row} has the track id {candidate_track}, expected {track}'
                continue
            paired_track = self.tracks.get(track)
            if paired_track is None and (track == candidate_track or is_tied):
                paired_track = self.tracks[track] = candidate_track
            if paired_track != candidate_track:
                return f'instance {row} has the track id {candidate_track}, expected {paired_track or track}'
        following = [int(state.tensors[next_id][0]) for state in states]
        return (
            ''
            if following[0] == following[1]
            else f'the next track id is {following[1]}, expected {following[0]}'
        )


def pair_rows(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return the candidate's row (Q,) for each of the reference's, by their places (Q, n)."""
    partners = np.arange(len(reference))
    with np.errstate(invalid='ignore'):
        is_near = np.abs(reference - candidate).max(-1) <= SAME_ROW
    moved = np.flatnonzero(~is_near)
    if not len(moved):
        return partners
    with np.errstate(invalid='ignore'):
        distance = np.abs(reference[moved][:, None] - candidate[moved][None]).max(-1)
    distance[~np.isfinite(distance)] = np.inf
    nearest = distance.argmin(1)
    fits = distance[np.arange(len(moved)), nearest] <= SAME_ROW
    if fits.all() and len({*nearest.tolist()}) == len(moved):
        partners[moved] = moved[nearest]
    elif fits.any():  # some have a partner, others are not in the candidate
        partners[moved] = np.where(fits, moved[nearest], -1)
    return partners


def at_the_cut(first_scores: np.ndarray, allowed: float) -> np.ndarray:
    """Return (Q,) bool: a tie within `allowed` may have left an instance out."""
    own_scores = first_scores[np.isfinite(first_scores)]
    return first_scores <= own_scores.min(initial=np.inf) + allowed


def pair_absent(partners: np.ndarray, may_be_absent: np.ndarray) -> np.ndarray:
    """Return partners as `pair_rows`, -1 only where `may_be_absent` (Q,)."""
    partners = partners.copy()
    free_rows = np.setdiff1d(np.arange(len(partners)), partners).tolist()
    absent = np.flatnonzero((partners < 0) & ~may_be_absent)
    for row in sorted(absent, key=lambda row: row not in free_rows):  # those whose index is free come first
        if free_rows:
            partners[row] = free_rows.pop(free_rows.index(row) if row in free_rows else 0)
    return partners


def rows_kept(places: np.ndarray, state: StreamState, spec: InstanceRows) -> np.ndarray:
    """Return the instance (M,) at the place of each memory row; `places` is (Q, n)."""
    memory = state.tensors[spec.place[0]][0].astype(np.float64)
    distance: Any = np.abs(memory[:, None] - places[None]).max(-1)
    return distance.argmin(1)


def not_the_best(selection: QuerySelection) -> str:
    """Return why the kept instances are not the most confident in descending order, or ''."""
    chosen_scores = selection.scores[selection.queries]
    best = -np.sort(-selection.scores)[: len(chosen_scores)]
    wrong = np.flatnonzero(chosen_scores != best)
    if not len(wrong):
        return ''
    row = int(wrong[0])
    return (
        f'memory row {row} has the confidence {chosen_scores[row]:.6f}, but a better one was left out: '
        f'{best[row]:.6f}'
    )
