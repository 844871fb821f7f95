"""Pairing of the instances of two engines whose memory is chosen anew in every frame. Needs numpy only.

Of a frame's Q instances the M most confident ones are kept; in the next frame they come first, and the best
of that frame's own instances follow. Engines that round differently put equal scores into another order, at
both choices. Nothing but order follows from that as long as the same instances are chosen, so that
instances are paired by their places, and a free run goes on in the reference's order, see `Modes.add`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proving.levels.memory_rows import SAME_ROW, Followed, Moment, QuerySelection, RowPairing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.memory import MemorySpec
    from mmdeploy_ext.runtime.frames import StreamState

NO_ID = -1
"""Id of an instance without a track."""


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
