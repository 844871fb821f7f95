"""What level 4 keeps of a drive: per frame a few numbers, per tensor its worst row, and why it fails."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.compare.rows import TensorRow
from mmdeploy_ext.compare.tensors import compare_tensors
from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.proof.levels.sequence_ties import RowPairing, score_error, selection
from mmdeploy_ext.proof.verdict import SequenceRow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mmdeploy_ext.proof.levels.sequence_ties import MemoryFacts
    from mmdeploy_ext.proof.verdict import DetectionRow
    from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState

STATE_TOLERANCES: dict[str, ColumnGroup] = {
    'embedding': ColumnGroup(rtol=0.0, atol=5e-4),
    'reference_point': ColumnGroup(unit='m', rtol=0.0, atol=2e-3),
    'timestamp': ColumnGroup(unit='s', rtol=0.0, atol=1e-5),
    'egopose': ColumnGroup(rtol=0.0, atol=2e-4),
    'velo': ColumnGroup(unit='m/s', rtol=0.0, atol=2e-4),
}
"""Absolute tolerances of a float32 memory. Source: "Suggested tolerances" of the reference data of StreamPETR
(measured between correct implementations); times 1e-5 s instead of 1e-6 s, because ages are float32 here and
a step of float32 at 10 s is 1e-6 s."""
QUERY_OUTPUTS = ('all_cls_scores', 'all_bbox_preds', 'outs_dec')
"""Outputs with the queries on the axis before the last."""
NEEDED_OUTPUTS = ('all_cls_scores', 'all_bbox_preds')
SAME_POSE = 1e-6
"""Metres, and seconds: a memory of this frame says so of itself."""
TIME_JUMP = 2.0


@dataclasses.dataclass(frozen=True)
class Bars:
    """What a drive has to keep.

    Attributes:
        frames: fewer are no proof.
        resets: after the first frame; fewer are no proof.
        score_thr: detections from this score on count.
        distance_m: largest distance of a matched pair.
        score: largest score difference of a matched pair.
        match_rate: smallest share of detections that are matched.
        tie: scores in the top-k this close, beyond twice the frame's own score error, are a tie.
            (Two lists sorted by scores that differ by at most e may disagree by 2e at a place.)
        near_counts: pairs outside the bars count as matched too (half precision): the same class, and as near
            as the task takes for one object.
        cosine: judge tensors by their cosine, not by the tolerances (half precision); None does not.
        state: tolerance of every memory tensor.
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
    state: Mapping[str, ColumnGroup] = dataclasses.field(default_factory=lambda: dict(STATE_TOLERANCES))


@dataclasses.dataclass(frozen=True)
class Moment:
    """One frame after both engines ran it.

    Attributes:
        frame: the frame.
        expected: what the reference gave.
        got: what the candidate gave.
        expected_state: the reference's memory afterwards.
        got_state: the candidate's.
    """

    frame: Frame
    expected: StepResult
    got: StepResult
    expected_state: StreamState | None
    got_state: StreamState | None


class Faults:
    """Counts what went wrong by kind and keeps the first of each: a broken engine fails at every frame."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}
        self.count: dict[str, int] = {}

    def add(self, kind: str, where: str) -> None:
        """Note a fault at a frame."""
        self.first.setdefault(kind, where)
        self.count[kind] = self.count.get(kind, 0) + 1

    def reasons(self) -> list[str]:
        """Return one sentence per kind."""
        return [
            f'{kind}, first at {self.first[kind]}' + (f' ({count} frames)' if count > 1 else '')
            for kind, count in self.count.items()
        ]


class PairRun:
    """Judges one candidate in one mode, one frame after the other."""

    def __init__(
        self,
        mode: str,
        spec: GraphSpec,
        bars: Bars,
        facts: MemoryFacts | None,
        match: Callable[..., DetectionRow],
    ) -> None:
        state = {source for source, _ in spec.state}
        self.mode, self.bars, self.match = mode, bars, match
        self.outputs = tuple(tensor for tensor in spec.outputs if tensor.name not in state)
        self.pairing = None if facts is None else RowPairing(facts)
        self.names: set[str] | None = None
        self.faults, self.stopped = Faults(), ''
        self.worst: dict[str, TensorRow] = {}
        self.failed: dict[str, list[str]] = {}
        self.series: dict[str, Any] = dict(
            name=[], reset=[], gap_s=[], reference=[], matched=[], extra=[], ties=[], errors={}, ratios={}
        )
        self.totals = dict(reference=0, matched=0, missing=0, extra=0, outside=0)
        self.worst_distance: float | None = None
        self.worst_score, self.ties, self.tied, self.affected = 0.0, 0, 0, 0
        self.last: tuple[str, float] | None = None

    def stop(self, reason: str) -> None:
        """End the run: the candidate failed."""
        self.stopped = reason

    def add(self, moment: Moment) -> None:
        """Judge one frame."""
        name = moment.frame.name or f'frame {len(self.series["name"])}'
        self._clock(moment.frame)
        self.series['name'].append(name)
        self.series['reset'].append(bool(moment.expected.was_reset))
        if self.pairing and (moment.expected.was_reset or self.mode == 'teacher'):
            self.pairing.forget()
        self._check_reset(moment, name)
        queries, rows, ties = self._pair_rows(moment, name)
        self.series['ties'].append(ties)
        self._tensors(moment, queries, rows, name)
        self._detections(moment, name)

    def _clock(self, frame: Frame) -> None:
        scene, time_s = self.last or (None, frame.timestamp_s)
        same = self.last is not None and scene == frame.scene_token
        self.series['gap_s'].append(round(frame.timestamp_s - time_s, 6) if same else None)
        self.last = frame.scene_token, frame.timestamp_s

    def _check_reset(self, moment: Moment, name: str) -> None:
        sides = 'reference', 'candidate'
        if moment.expected.was_reset != moment.got.was_reset:
            one, other = sides if moment.expected.was_reset else sides[::-1]
            self.faults.add(f'the {one} emptied its memory and the {other} did not', name)
        for side, state in zip(sides, (moment.expected_state, moment.got_state), strict=True):
            if state is None:
                self.faults.add(f'the {side} keeps no memory after a frame', name)
            elif _of_another_frame(state, moment.frame):
                self.faults.add(
                    f'the {side} says that its memory is of another frame (pose, time or scene)', name
                )

    def _pair_rows(self, moment: Moment, name: str) -> tuple[np.ndarray | None, np.ndarray | None, int]:
        """Return partners of the queries and of the memory rows (None: all by index), and the ties."""
        sides = moment.expected.outputs, moment.got.outputs
        states = moment.expected_state, moment.got_state
        comparable = all(name in outputs for outputs in sides for name in NEEDED_OUTPUTS)
        if self.pairing is None or not comparable or None in states:
            return None, None, 0
        if sides[0]['all_cls_scores'].shape[1:] != sides[1]['all_cls_scores'].shape[1:]:
            return None, None, 0
        queries = self.pairing.queries(sides[0]['all_cls_scores'].shape[-2])
        chosen = [
            selection(outputs, state.tensors, self.pairing.facts.topk)
            for outputs, state in zip(sides, states, strict=True)
        ]
        error = score_error(*chosen, queries)
        if self.mode == 'teacher':
            error = min(error, self.bars.score)
        num_rows = states[0].tensors['reference_point'].shape[1]
        affected = self.pairing.affected
        differing = self.pairing.advance(*chosen, queries, num_rows)
        allowed = self.bars.tie + 2 * error
        beyond = [row for row in differing if not row.gap <= allowed]
        if (
            beyond and not affected
        ):  # rows of an earlier tie give other queries, so that the choice may differ
            worst = max(beyond, key=lambda row: row.gap)
            detail = f'row {worst.row}: queries {worst.reference} and {worst.candidate}, scores '
            detail += f'{worst.gap:.2g} apart, allowed {allowed:.2g}'
            self.faults.add('the rows kept in memory differ by more than a tie', f'{name} ({detail})')
        ties = len(differing) - len(beyond)
        self.ties += ties
        self.tied += bool(ties)
        self.affected += self.pairing.affected
        return queries, self.pairing.rows, ties

    def _tensors(
        self, moment: Moment, queries: np.ndarray | None, rows: np.ndarray | None, name: str
    ) -> None:
        expected, got = moment.expected.outputs, moment.got.outputs
        if self.names is None:
            self.names = {*NEEDED_OUTPUTS, *(expected.keys() & got.keys())}
        specs = tuple(tensor for tensor in self.outputs if tensor.name in self.names)
        names = [tensor.name for tensor in specs]
        sides = (
            {key: expected[key] for key in names if key in expected},
            {key: got[key] for key in names if key in got},
        )
        found = compare_tensors(*_aligned(*_last_layer(*sides, specs), queries), GraphSpec('', (), specs))
        found += self._memory(moment, rows)
        for row in found:
            self._keep(row, name)

    def _memory(self, moment: Moment, rows: np.ndarray | None) -> list[TensorRow]:
        states = moment.expected_state, moment.got_state
        if None in states:
            return []
        expected, got = ({f'memory {key}': array for key, array in state.tensors.items()} for state in states)
        specs = tuple(
            TensorSpec(f'memory {key}', 'float32', (), groups=(group,))
            for key, group in self.bars.state.items()
        )
        if rows is not None and all(np.shape(got.get(key))[:2] == (1, len(rows)) for key in expected):
            keep = rows >= 0
            expected = {key: array[:, keep] for key, array in expected.items()}
            got = {key: array[:, rows[keep]] for key, array in got.items()}
        return compare_tensors(expected, got, GraphSpec('the memory', (), specs))

    def _keep(self, row: TensorRow, name: str) -> None:
        """Judge one row and keep it if it is the worst of its tensor; the histograms add up."""
        passed = self._judge(row)
        ratio = _ratio(row)
        count = len(self.series['name'])
        for key, value in (('errors', row.max_abs), ('ratios', ratio)):
            values = self.series[key].setdefault(row.tensor, [None] * (count - 1))
            values += [None] * (count - 1 - len(values))
            values.append(value)
        if not passed:
            self.failed.setdefault(row.tensor, []).append(name)
        reason = '' if passed else row.reason or f'cosine {row.cosine:.6f} below {self.bars.cosine}'
        row = dataclasses.replace(row, passed=passed, reason=reason, at=name)
        known = self.worst.get(row.tensor)
        if known is None:
            self.worst[row.tensor] = row
            return
        worse = (not row.passed, _badness(row)) > (not known.passed, _badness(known))
        histogram = _added(known.histogram, row.histogram)
        self.worst[row.tensor] = dataclasses.replace(row if worse else known, histogram=histogram)

    def _judge(self, row: TensorRow) -> bool:
        if row.max_abs is None:
            return False
        if self.mode == 'free' or self.bars.cosine is None:
            return row.passed or self.mode == 'free'
        return row.cosine is not None and row.cosine >= self.bars.cosine

    def _detections(self, moment: Moment, name: str) -> None:
        bars = self.bars
        row = self.match(
            name,
            moment.expected.detections,
            moment.got.detections,
            score_thr=bars.score_thr,
            distance_bar=bars.distance_m,
            score_bar=bars.score,
        )
        for key in self.totals:
            self.totals[key] += getattr(row, key)
        for key in ('reference', 'matched', 'extra'):
            self.series[key].append(getattr(row, key))
        if not row.passed and not (row.missing or row.extra or row.outside):
            self.faults.add('the detections cannot be compared', f'{name} ({row.reason})')
        self.worst_score = max(self.worst_score, row.worst_score)
        if row.worst_distance is not None:
            self.worst_distance = max(self.worst_distance or 0.0, row.worst_distance)

    def finish(self) -> SequenceRow:
        """Return what the drive gave."""
        frames = len(self.series['name'])
        counts = self.totals
        counted = max(counts['reference'], counts['matched'] + counts['outside'] + counts['extra'])
        same = counts['matched'] + (counts['outside'] if self.bars.near_counts else 0)
        rate = min(same / counted, 1.0) if counted else None
        row = SequenceRow(
            mode=self.mode,
            frames=frames,
            resets=sum(self.series['reset'][1:]),
            time_jumps=_jumps(self.series['gap_s']),
            **self.totals,
            match_rate=rate,
            match_bar=self.bars.match_rate,
            worst_distance=self.worst_distance,
            worst_score=self.worst_score,
            ties=self.ties,
            tied_frames=self.tied,
            affected_frames=self.affected,
            tensors=tuple(self.worst.values()),
            series=self.series,
        )
        return dataclasses.replace(row, reasons=tuple(self._reasons(row)))

    def _reasons(self, row: SequenceRow) -> list[str]:
        bars = self.bars
        reasons = [self.stopped] * bool(self.stopped) + self.faults.reasons()
        if row.frames < bars.frames:
            reasons.append(f'{row.frames} frames ran, a proof wants {bars.frames}')
        if row.resets < bars.resets:
            reasons.append(f'{row.resets} resets after the first frame, a proof wants {bars.resets}')
        for tensor, names in self.failed.items():
            reasons.append(
                f'{tensor}: {len(names)} of {row.frames} frames fail, first {names[0]}; worst '
                f'{self.worst[tensor].at}: {self.worst[tensor].reason}'
            )
        if row.match_rate is None:
            reasons.append('no detection was matched: use a drive with objects that the model finds')
        elif row.match_rate < bars.match_rate:
            reasons.append(
                f'{row.matched} of {row.reference} detections matched '
                f'({100 * row.match_rate:.2f} %, wanted {100 * bars.match_rate:g} %): {row.missing} missing, '
                f'{row.extra} extra, {row.outside} outside the bars'
            )
        return reasons


def _of_another_frame(state: StreamState, frame: Frame) -> bool:
    return not (
        state.scene_token == frame.scene_token
        and abs(state.timestamp_s - frame.timestamp_s) <= SAME_POSE
        and np.allclose(state.ego_pose, frame.ego_pose, rtol=0, atol=SAME_POSE)
    )


def _last_layer(
    expected: dict[str, np.ndarray], got: dict[str, np.ndarray], specs: tuple[TensorSpec, ...]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Cut the reference's layers to the last one where the graph gives only that one."""
    for tensor in specs:
        array = expected.get(tensor.name)
        if array is not None and tensor.name in NEEDED_OUTPUTS and tensor.axes[:1] == (1,):
            expected[tensor.name] = array[-1:]
    return expected, got


def _aligned(
    expected: dict[str, np.ndarray], got: dict[str, np.ndarray], queries: np.ndarray | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Bring the candidate's queries to the reference's order; those without a partner are left out."""
    if queries is None or np.array_equal(queries, np.arange(len(queries))):
        return expected, got
    keep = queries >= 0
    for name in QUERY_OUTPUTS:
        if name in expected and name in got:
            expected[name] = expected[name][..., keep, :]
            got[name] = got[name][..., queries[keep], :]
    return expected, got


def _ratio(row: TensorRow) -> float | None:
    return None if row.max_abs is None or not row.tolerance else row.max_abs / row.tolerance


def _badness(row: TensorRow) -> float:
    ratio = _ratio(row)
    return np.inf if row.max_abs is None else row.max_abs if ratio is None else ratio


def _added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    if not one or not other:
        return one or other
    return tuple(left + right for left, right in zip(one, other, strict=True))


def _jumps(gaps_s: list[float | None]) -> int:
    """Return how many gaps within scenes are at least `TIME_JUMP` times the usual one."""
    known = [gap for gap in gaps_s if gap is not None]
    usual = float(np.median(known)) if known else 0.0
    return sum(gap >= TIME_JUMP * usual for gap in known if usual > 0)
