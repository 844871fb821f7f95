"""Pairing of memory rows of two engines: the propagated top-k of queries, and ties in it. Needs numpy only.

A query that a frame puts into the memory is a row of it from then on, and some rows become queries of the
next frame. Glossary: Q queries, K rows that a frame adds to the memory, n memory rows.

`InstancePairing` is for a memory that is chosen anew in every frame: of Q instances the M most confident ones
are kept; in the next frame they come first, and the best of that frame's own instances follow. Engines that
round differently put equal scores into another order, at both choices. Nothing but order follows from that as
long as the same instances are chosen, so that instances are paired by their places, and a free run goes on in
the reference's order, see `Modes.add`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.memory import MemorySpec
    from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState

SAME_ROW = 5e-3
"""Metres and m/s: largest difference of a memory row from the prediction of the query that it is from, and of
an instance from its partner in the other engine, see `pair_rows`."""
CLEARLY_NEARER = 1e-4
"""Metres: a memory row is only taken for another query's than the one that the order of scores puts there if
that one's prediction is nearer by this; the float32 noise of a memory in global coordinates is below it."""
NO_ID = -1
"""Id of an instance without a track."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """One frame after both engines ran it.

    Attributes:
        frame: the frame.
        expected: result of the reference.
        got: result of the candidate.
        expected_state: memory of the reference after the frame; None if it keeps none.
        got_state: memory of the candidate after the frame; None likewise.
    """

    frame: Frame
    expected: StepResult
    got: StepResult
    expected_state: StreamState | None
    got_state: StreamState | None


@dataclasses.dataclass(frozen=True)
class QuerySelection:
    """The queries that one engine put into its memory.

    Attributes:
        scores: (Q,) float64, of each query the score of its best class by the last layer; for an
            `InstancePairing` its confidence.
        queries: (K,) int64, the query of each new memory row, which are the first of the memory.
    """

    scores: np.ndarray
    queries: np.ndarray


@dataclasses.dataclass(frozen=True)
class RowDifference:
    """A new memory row into which two engines put different queries.

    Attributes:
        row: index of the memory row.
        reference: index of the reference's query.
        candidate: index of the candidate's query, among its own.
        gap: absolute difference of the reference's scores of the two queries; of a candidate's query without
            a partner the candidate's score counts.
    """

    row: int
    reference: int
    candidate: int
    gap: float


def best_scores(logits: np.ndarray) -> np.ndarray:
    """Return the score (Q,) float64 of the best class of every query, by the last layer.

    It is the sigmoid of the largest of a query's `logits` (layers, 1, Q, classes).
    """
    best = np.asarray(logits, np.float64)[-1, 0].max(-1)
    with np.errstate(invalid='ignore'):
        return np.exp(-np.logaddexp(0.0, -best))


def select_queries(
    outputs: Mapping[str, np.ndarray], memory: Mapping[str, np.ndarray] | None, spec: MemorySpec
) -> QuerySelection:
    """Return which queries an engine put into its memory.

    By the order of scores they should be the first K. The places in the memory show which ones they are: a
    row that is clearly nearer to another query's prediction is that query's. A row that is near to none is
    taken for the query of the order (its values are compared anyway).

    Args:
        outputs: name -> output of the frame.
        memory: name -> tensor of the memory after the frame; None or fewer rows than K: only scores decide.
        spec: names of the scores and places, at least one place, and K (`topk`).
    """
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
    """The pairing of both engines' memories after a frame.

    Attributes:
        queries: (Q,) index of the candidate's query for each of the reference's, -1 for none; None: equal
            indices belong together.
        rows: (n,) the same of the memory's rows.
        ties: number of new rows that differ because of a tie; of an `InstancePairing` also of queries.
        fault: why rows differ by more than a tie, or ''. Without `InstancePairing` it is '' as long as rows
            of an earlier tie differ: these give other queries.
        parted: whether the memories held the same rows before this frame, in any order, and do not after it,
            because of scores that differ by no more than the bar of ties, without any allowance for errors;
            of an `InstancePairing` whatever they held before, since all rows are chosen anew.
    """

    queries: np.ndarray | None = None
    rows: np.ndarray | None = None
    ties: int = 0
    fault: str = ''
    parted: bool = False


class RowPairing:
    """Keeps, along a drive, which candidate row and query belongs to which of the reference.

    Without ties row i belongs to row i. A tie swaps rows, or takes a row that the other engine lacks; the
    swapped rows become queries of the next frame and older rows of the following ones. `spec` is the family's
    description of its memory.

    Attributes:
        rows: (n,) int64, the candidate's memory row for each of the reference; -1 for none; None at the
            beginning, when the memories are equal.
    """

    def __init__(self, spec: MemorySpec) -> None:
        self.spec = spec
        self.rows: np.ndarray | None = None

    def forget(self) -> None:
        """Begin with equal memories: after a reset, or when the candidate gets the reference's memory."""
        self.rows = None

    @property
    def affected(self) -> bool:
        """Whether a row of the reference is another row of the candidate, or none."""
        return self.rows is not None and bool((self.rows != np.arange(len(self.rows))).any())

    def queries(self, count: int) -> np.ndarray:
        """Return the candidate's query (Q,) int64 for each of the reference's in this frame; -1 for none.

        `count` is Q.
        """
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
        """Update `rows` by the queries that a frame put into the memories; return new rows that differ.

        Args:
            reference: queries that the reference put into its memory.
            candidate: queries that the candidate put into its memory.
            partners: (Q,) what `queries` returned for the frame.
            num_rows: n.
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
        """Follow the memories over a frame, and tell ties from errors; `rows` changes.

        If a memory or an output that is needed is missing, or the scores (of an `InstancePairing` the places)
        differ in a size, nothing changes, and the result is `Followed()`. The number of layers may differ.

        Args:
            moment: the frame; a memory of None is that of a side without one.
            tie: scores that differ by no more than this plus twice the frame's score error are a tie.
            max_error: upper bound of the frame's score error in that sum.
        """
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
    """Return the largest score difference of queries that belong together; 0 if none is finite.

    `partners` (Q,) is the candidate's query for each of the reference's, -1 for none.
    """
    paired = partners >= 0
    gaps = np.abs(reference.scores[paired] - candidate.scores[partners[paired]])
    return float(gaps[np.isfinite(gaps)].max(initial=0.0))


class InstancePairing(RowPairing):
    """Keeps, along a drive, which instance, memory row and track of a candidate is which of the reference.

    `RowPairing` describes the methods; queries are instances here.

    Attributes:
        tracks: id of the reference -> id of the candidate. They are equal but for ties, since new ids are
            given in the order of rows.
    """

    def __init__(self, spec: MemorySpec) -> None:
        super().__init__(spec)
        self.tracks: dict[int, int] = {}

    def forget(self) -> None:
        super().forget()
        self.tracks = {}

    def follow(self, moment: Moment, tie: float, max_error: float) -> Followed:
        spec, sides = self.spec, [moment.expected.outputs, moment.got.outputs]
        states = moment.expected_state, moment.got_state
        needed = {*spec.needed, spec.confidence, *spec.ids[:1]}
        if None in states or any(needed - side.keys() for side in sides):
            return Followed()
        places = [side[spec.places[0][1]][0].astype(np.float64) for side in sides]
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
        faults.append(self._wrong_track(sides, states, queries, ties > 0))
        parted = bool((self.rows < 0).any()) and all(row.gap <= tie for row in differing)
        fault = next(filter(None, faults), '')
        return Followed(queries, self.rows, ties, fault, parted and not fault)

    def reordered(self, state: StreamState) -> dict[str, np.ndarray] | None:
        """Return the memory of a candidate in the order of the reference, with equal rows from there on.

        The pairs of tracks stay. None if the order is the same, or if the two hold different instances.
        """
        rows = self.rows
        if rows is None or not self.affected or (rows < 0).any():
            return None
        self.rows = None
        return {
            name: values[:, rows] if values.shape[:2] == (1, len(rows)) else values
            for name, values in state.tensors.items()
        }

    def _wrong_order(self, outputs: Mapping[str, np.ndarray], queries: np.ndarray, allowed: float) -> str:
        """Return why instances in another order are no tie of the frame's own choice, or ''."""
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
        """Return which track differs, or ''; a tie may change the order in which tracks begin."""
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
            '' if following[0] == following[1] else f'the next id is {following[1]}, expected {following[0]}'
        )


def pair_rows(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Return the candidate's row (Q,) int64 for each of the reference's, by their places (Q, n).

    Rows of the same index belong together if they are near, i.e. differ by no more than `SAME_ROW` in every
    column. The others take the nearest of the rows that are left if it is near (two may take the same one),
    and -1 if it is not. If none of them has a near one, all keep their index, so that their values are
    compared and fail.
    """
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
    """Return (Q,) bool: whether a tie of at most `allowed` may have left a frame's own instance out.

    `first_scores` (Q,) are those by which own instances were chosen, NaN for kept ones, which no tie of the
    frame leaves out.
    """
    own_scores = first_scores[np.isfinite(first_scores)]
    return first_scores <= own_scores.min(initial=np.inf) + allowed


def pair_absent(partners: np.ndarray, may_be_absent: np.ndarray) -> np.ndarray:
    """Return partners as `pair_rows` does, -1 only for rows that may be absent from the candidate.

    The others get a free row of the candidate, that of their index if it is free, so that their values are
    compared and fail.

    Args:
        partners: (Q,) what `pair_rows` returned.
        may_be_absent: (Q,) bool.
    """
    partners = partners.copy()
    free_rows = np.setdiff1d(np.arange(len(partners)), partners).tolist()
    absent = np.flatnonzero((partners < 0) & ~may_be_absent)
    for row in sorted(absent, key=lambda row: row not in free_rows):  # those whose index is free come first
        if free_rows:
            partners[row] = free_rows.pop(free_rows.index(row) if row in free_rows else 0)
    return partners


def rows_kept(places: np.ndarray, state: StreamState, spec: MemorySpec) -> np.ndarray:
    """Return the index (M,) of the instance that each memory row is a copy of: that at the same place.

    Args:
        places: (Q, n) of the frame's instances.
        state: the memory after the frame.
        spec: names the memory's tensor of places.
    """
    memory = state.tensors[spec.places[0][0]][0].astype(np.float64)
    distance: Any = np.abs(memory[:, None] - places[None]).max(-1)
    return distance.argmin(1)


def not_the_best(selection: QuerySelection) -> str:
    """Return why the kept instances are not the most confident ones, in descending order; '' if they are."""
    chosen_scores = selection.scores[selection.queries]
    best = -np.sort(-selection.scores)[: len(chosen_scores)]
    wrong = np.flatnonzero(chosen_scores != best)
    if not len(wrong):
        return ''
    row = int(wrong[0])
    return f'memory row {row} has the confidence {chosen_scores[row]:.6f}, the best one left {best[row]:.6f}'
