"""What level 4 keeps of a drive: per frame a few numbers, per tensor its worst row, and why it fails."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.proving.enough import lone_low_results
from mmdeploy_ext.proving.levels.sequence_rows import WorstRows
from mmdeploy_ext.proving.levels.sequence_ties import Followed, RowPairing
from mmdeploy_ext.proving.results import SequenceRow
from mmdeploy_ext.proving.rows import TensorRow
from mmdeploy_ext.proving.tensors import compare_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.families.memory import MemorySpec
    from mmdeploy_ext.proving.results import DetectionRow
    from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState

SAME_POSE = 1e-6
"""Metres, and seconds: a memory of this frame says so of itself."""
TIME_JUMP = 2.0
MOST_TAKEN = 20
"""Frames for each that a memory is taken over in, see `PairRun.takes_over`."""


@dataclasses.dataclass(frozen=True)
class Bars:
    """What a drive has to keep.

    Attributes:
        frames: fewer are no proof.
        resets: after the first frame; fewer are no proof.
        score_thr: detections from this score on count one by one, those below it by their share
            (`lone_low_results`).
        distance_m: largest distance of a matched pair.
        score: largest score difference of a matched pair.
        match_rate: smallest share of detections that are matched.
        tie: scores in the top-k this close, beyond twice the frame's own score error, are a tie.
            (Two lists sorted by scores that differ by at most e may disagree by 2e at a place.)
        near_counts: pairs outside the bars count as matched too (half precision): the same class, and as near
            as the task takes for one object.
        cosine: judge tensors by their cosine, not by the tolerances (half precision); None does not.
    """

    frames: int = 100
    resets: int = 1
    score_thr: float = 0.1
    distance_m: float = 0.01
    score: float = 1e-3
    match_rate: float = 0.999
    tie: float = 2e-5
    near_counts: bool = False
    cosine: float | None = None


@dataclasses.dataclass(frozen=True)
class Moment:
    """One frame after both engines ran it: what the reference and the candidate gave, their memories then."""

    frame: Frame
    expected: StepResult
    got: StepResult
    expected_state: StreamState | None
    got_state: StreamState | None


class PairRun:
    """Judges one candidate in one mode, one frame after the other."""

    def __init__(
        self,
        mode: str,
        spec: GraphSpec,
        bars: Bars,
        memory: MemorySpec,
        match: Callable[..., DetectionRow],
    ) -> None:
        state = {source for source, _ in spec.state}
        self.mode, self.bars, self.memory, self.match = mode, bars, memory, match
        self.outputs = tuple(tensor for tensor in spec.outputs if tensor.name not in state)
        self.pairing = RowPairing(memory) if memory.scores else None
        self.names: set[str] | None = None
        self.faults: dict[str, list[str]] = collections.defaultdict(list)
        """What went wrong -> the frames."""
        self.stopped = ''
        self.tensors = WorstRows(mode == 'free', bars.cosine)
        self.series: dict[str, Any] = dict(
            name=[], reset=[], gap_s=[], reference=[], matched=[], extra=[], ties=[], **self.tensors.series
        )
        self.totals = dict(reference=0, matched=0, missing=0, extra=0, outside=0, low=0, low_alone=0)
        self.tied = dict(ties=0, tied_frames=0, affected_frames=0, taken_over=0)
        self.worst_distance: float | None = None
        self.last: tuple[str, float] | None = None
        self.worst_score, self.parted = 0.0, False

    def add(self, moment: Moment) -> None:
        """Judge one frame."""
        name = moment.frame.name or f'frame {len(self.series["name"])}'
        self._clock(moment.frame)
        self.series['name'].append(name)
        self.series['reset'].append(bool(moment.expected.was_reset))
        if self.pairing and (moment.expected.was_reset or self.mode == 'teacher'):
            self.pairing.forget()
        self._check_reset(moment, name)
        followed = self._follow(moment, name)
        self.series['ties'].append(followed.ties)
        self._tensors(moment, followed, name)
        self.parted = self._detections(moment, name) and followed.parted

    def takes_over(self) -> bool:
        """Return whether the candidate goes on with the reference's memory after the frame that was added.

        It does where a tie alone decided which rows are kept and all results of the frame are equal: a model
        may give other results with the other row, and PyTorch itself would with it. One frame of 20 may.
        """
        most = max(self.bars.frames // MOST_TAKEN, 1)
        if self.mode != 'free' or not self.parted or self.tied['taken_over'] >= most:
            return False
        self.tied['taken_over'] += 1
        self.pairing.forget()
        return True

    def _clock(self, frame: Frame) -> None:
        last, self.last = self.last, (frame.scene_token, frame.timestamp_s)
        same = last is not None and last[0] == frame.scene_token
        self.series['gap_s'].append(round(frame.timestamp_s - last[1], 6) if same else None)

    def _check_reset(self, moment: Moment, name: str) -> None:
        sides = 'reference', 'candidate'
        if moment.expected.was_reset != moment.got.was_reset:
            one, other = sides if moment.expected.was_reset else sides[::-1]
            self.faults[f'the {one} emptied its memory and the {other} did not'].append(name)
        for side, state in zip(sides, (moment.expected_state, moment.got_state), strict=True):
            if state is None:
                self.faults[f'the {side} keeps no memory after a frame'].append(name)
            elif _of_another_frame(state, moment.frame):
                what = f'the {side} says that its memory is of another frame (pose, time or scene)'
                self.faults[what].append(name)

    def _follow(self, moment: Moment, name: str) -> Followed:
        """Pair the queries and the memory rows of both sides."""
        if self.pairing is None:
            return Followed()
        most_error = self.bars.score if self.mode == 'teacher' else np.inf
        results, states = (moment.expected, moment.got), (moment.expected_state, moment.got_state)
        found = self.pairing.follow(results, states, self.bars.tie, most_error)
        if found.fault:
            what = 'the rows kept in memory differ by more than a tie'
            self.faults[what].append(f'{name} ({found.fault})')
        self.tied['ties'] += found.ties
        self.tied['tied_frames'] += bool(found.ties)
        self.tied['affected_frames'] += found.rows is not None and self.pairing.affected
        return found

    def _tensors(self, moment: Moment, followed: Followed, name: str) -> None:
        expected, got = moment.expected.outputs, moment.got.outputs
        if self.names is None:
            self.names = {*self.memory.needed, *(expected.keys() & got.keys())}
        specs = tuple(tensor for tensor in self.outputs if tensor.name in self.names)
        sides = [{one.name: side[one.name] for one in specs if one.name in side} for side in (expected, got)]
        for tensor in specs:  # a graph may give the last layer alone
            if tensor.name in sides[0] and tensor.name in self.memory.needed and tensor.axes[:1] == (1,):
                sides[0][tensor.name] = sides[0][tensor.name][-1:]
        _align(*sides, self.memory.per_query, followed.queries)
        found = compare_tensors(*sides, GraphSpec('', (), specs)) + self._memory(moment, followed.rows)
        for row in found:
            self.tensors.keep(row, name, len(self.series['name']))

    def _memory(self, moment: Moment, rows: np.ndarray | None) -> list[TensorRow]:
        states = moment.expected_state, moment.got_state
        if None in states:
            return []
        expected, got = ({f'memory {key}': array for key, array in state.tensors.items()} for state in states)
        specs = tuple(
            TensorSpec(f'memory {key}', 'float32', (), groups=(group,))
            for key, group in self.memory.tensors.items()
        )
        if rows is not None and all(np.shape(got.get(key))[:2] == (1, len(rows)) for key in expected):
            keep = rows >= 0
            expected = {key: array[:, keep] for key, array in expected.items()}
            got = {key: array[:, rows[keep]] for key, array in got.items()}
        return compare_tensors(expected, got, GraphSpec('the memory', (), specs))

    def _detections(self, moment: Moment, name: str) -> bool:
        """Count matched results; return whether all are."""
        sides, bars = (moment.expected.detections, moment.got.detections), self.bars
        limits = dict(score_thr=bars.score_thr, distance_bar=bars.distance_m, score_bar=bars.score)
        row = self.match(name, *sides, **limits)
        for key in self.totals:
            self.totals[key] += getattr(row, key)
        for key in ('reference', 'matched', 'extra'):
            self.series[key].append(getattr(row, key))
        if not row.passed and not (row.missing or row.extra or row.outside):
            self.faults['the detections cannot be compared'].append(f'{name} ({row.reason})')
        self.worst_score = max(self.worst_score, row.worst_score)
        if row.worst_distance is not None:
            self.worst_distance = max(self.worst_distance or 0.0, row.worst_distance)
        return row.passed

    def finish(self) -> SequenceRow:
        """Return what the drive gave."""
        counts = self.totals
        counted = max(counts['reference'], counts['matched'] + counts['outside'] + counts['extra'])
        same = counts['matched'] + (counts['outside'] if self.bars.near_counts else 0)
        row = SequenceRow(
            mode=self.mode,
            frames=len(self.series['name']),
            resets=sum(self.series['reset'][1:]),
            time_jumps=_jumps(self.series['gap_s']),
            **self.totals,
            match_rate=min(same / counted, 1.0) if counted else None,
            match_bar=self.bars.match_rate,
            worst_distance=self.worst_distance,
            worst_score=self.worst_score,
            **self.tied,
            tensors=tuple(self.tensors.worst.values()),
            series=self.series,
        )
        return dataclasses.replace(row, reasons=tuple(self._reasons(row)))

    def _reasons(self, row: SequenceRow) -> list[str]:
        bars = self.bars
        reasons = [self.stopped] * bool(self.stopped)
        for what, places in self.faults.items():
            count = f' ({len(places)} frames)' * (len(places) > 1)
            reasons.append(f'{what}, first at {places[0]}{count}')
        if row.frames < bars.frames:
            reasons.append(f'{row.frames} frames ran, a proof wants {bars.frames}')
        if row.resets < bars.resets:
            reasons.append(f'{row.resets} resets after the first frame, a proof wants {bars.resets}')
        reasons += self.tensors.reasons(row.frames)
        if row.match_rate is None:
            reasons.append('no detection was matched: use a drive with objects that the model finds')
        elif row.match_rate < bars.match_rate:
            reasons.append(
                f'{row.matched} of {row.reference} detections matched '
                f'({100 * row.match_rate:.2f} %, wanted {100 * bars.match_rate:g} %): {row.missing} missing, '
                f'{row.extra} extra, {row.outside} outside the bars'
            )
        elif bars.cosine is None:
            reasons += lone_low_results(row.low, row.low_alone)
        return reasons


def _of_another_frame(state: StreamState, frame: Frame) -> bool:
    return not (
        state.scene_token == frame.scene_token
        and abs(state.timestamp_s - frame.timestamp_s) <= SAME_POSE
        and np.allclose(state.ego_pose, frame.ego_pose, rtol=0, atol=SAME_POSE)
    )


def _align(
    expected: dict[str, np.ndarray],
    got: dict[str, np.ndarray],
    names: Sequence[str],
    queries: np.ndarray | None,
) -> None:
    """Bring the candidate's queries to the reference's order; those without a partner are left out."""
    if queries is None or np.array_equal(queries, np.arange(len(queries))):
        return
    keep = queries >= 0
    for name in names:
        if name in expected and name in got:
            expected[name] = expected[name][..., keep, :]
            got[name] = got[name][..., queries[keep], :]


def _jumps(gaps_s: list[float | None]) -> int:
    """Return how many gaps within scenes are at least `TIME_JUMP` times the usual one."""
    known = [gap for gap in gaps_s if gap is not None]
    usual = float(np.median(known)) if known else 0.0
    return sum(gap >= TIME_JUMP * usual for gap in known if usual > 0)
