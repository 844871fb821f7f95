"""Two engines over the same drive, frame by frame. Needs numpy only."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import one_line
from mmdeploy_ext.proving.explain import draws_of, rounding_of
from mmdeploy_ext.proving.subject import Sample, Step, Subject, Unread
from mmdeploy_ext.runtime.tasks import bbox3d, task_module
from mmdeploy_ext.spec.comparison import DRAWS, ROUNDINGS, compare_tensors, same_bits
from mmdeploy_ext.spec.matching import MAX_REST
from mmdeploy_ext.spec.results import SequenceRow, bars_of, first_lines, out_of_bars
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult, StreamState
    from mmdeploy_ext.spec.comparison import Rounding
    from mmdeploy_ext.spec.memory import InstanceRows, MemorySpec
    from mmdeploy_ext.spec.results import DetectionRow, TensorRow


# Pairing of memory rows of two engines: the propagated top-k of queries and ties in it.


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


MODES = ('teacher', 'free')
"""Modes of a candidate: teacher-forced and free-running."""
SAME_POSE = 1e-6
"""Metres and seconds: largest difference of a memory's pose and time from the frame's."""
TIME_JUMP = 2.0
"""Gaps of at least this many usual ones are jumps in time."""
NOTHING_FOUND = 'no detection was matched: use a drive with objects that the model finds'
"""Reason of failure: neither side found anything that counts."""
RESULTS_AGAIN = 'the model finds different objects when the first frame runs again after a reset'
"""Fault of a memory that a reset does not empty."""
MAX_DRAWN = 4
"""Maximum of sweeps, or frames, in the report."""
FRAMES_PER_TAKEOVER = 20
"""Frames per allowed takeover, see `PairRun.takes_over`."""


@dataclasses.dataclass(frozen=True)
class DriveBars:
    """Limits for the figures of a drive.

    Attributes:
        frames: least number of frames.
        resets: least resets of the memory after the first frame.
        score_thr: detections from here on need a partner (the candidate's from `score` above).
        distance_m: largest distance of matched centres.
        corner_m: largest distance of their corners (m/s of velocities), below float32 in place of other bars.
        score: largest score difference of a matched pair.
        match_rate: least matched share of the longer list, over all frames.
        tie: scores in the top-k tie within this plus twice the frame's largest score error.
        near_counts: pairs outside the bars count as matched (below float32).
        cosine: least cosine of tensors (below float32); None: the tolerances decide.
    """

    frames: int = 100
    resets: int = 1
    score_thr: float = 0.1
    distance_m: float = 0.01
    corner_m: float | None = None
    score: float = 1e-3
    match_rate: float = 0.999
    tie: float = 2e-5
    near_counts: bool = False
    cosine: float | None = None


FULL_DRIVE = DriveBars()
"""The bars of a claim about drift: a hundred frames with a scene change."""
SHORT_DRIVE = dataclasses.replace(FULL_DRIVE, frames=2, resets=0)
"""The bars of `--verify`, for two or more frames."""


def default_bars(precision: str) -> DriveBars:
    """Return the bars for 'fp32', 'fp16', 'bf16' or 'int8'."""
    bars = bars_of(precision)
    if bars.is_float32:
        return SHORT_DRIVE
    same = {name: getattr(bars, name) for name in ('cosine', 'distance_m', 'score', 'match_rate')}
    return dataclasses.replace(SHORT_DRIVE, **same, corner_m=bars.distance_m, near_counts=True, tie=2e-3)


def bars_of_task(task: str, bars: DriveBars) -> DriveBars:
    """Return bars with the task's own `MATCH_RATE` in float32."""
    rate = getattr(task_module(task), 'MATCH_RATE', bars.match_rate)
    return bars if bars.cosine is not None else dataclasses.replace(bars, match_rate=rate)


class Drives(Subject):
    """The reference and one candidate per mode over the frames of a drive, from empty memories.

    In float32 the results of 'teacher' also have to equal the results of the reference's test path on the
    candidate's outputs.

    Attributes:
        substituted: number of results per frame that the reference's test path made of the candidate's
            outputs.
        before: state of the reference before the last frame; None: empty.
        last: mode -> memory that the candidate has.
        first, most_results: the first frame, and the most results of a frame in PyTorch.
        own: the reference without a recording, for further runs of a frame.
        runs: mode -> `PairRun`.
        made: title of the reference's `decode_cases` -> number of frames whose outputs allow the case.
    """

    is_drive = True

    def __init__(
        self,
        reference: Stepper,
        candidates: Mapping[str, Stepper],
        spec: GraphSpec,
        *,
        memory: MemorySpec,
        bars: DriveBars | None = None,
        task: str = 'bbox3d',
        frames: Collection[Frame] = (),
        module: Any = None,
        rule: Any = None,
        watch: Any = None,
    ) -> None:
        """Keep the engines and empty their memories.

        Args:
            reference: the unpatched PyTorch model.
            candidates: 'free' and/or 'teacher' -> the file on its engine.
            spec: spec of the files; the outputs that `memory` needs and both engines give are compared.
            memory: the family's description.
            bars: None: `DriveBars`.
            task: name of the task that matches results.
            frames: of the drive.
            module: the reference's, for runs in float64; None: rounding is not known.
            rule: of the preprocessing, to draw frames; None: none is drawn.
            watch: context that looks at the reference's runs.
        """
        if unknown := [mode for mode in candidates if mode not in MODES]:
            raise ValueError(f'mode {unknown[0]!r}: expected one of {", ".join(MODES)}')
        match, bars = task_module(task).match_detections, bars_of_task(task, bars or DriveBars())
        self.reference, self.candidates, self.given = reference, candidates, frames
        self.own = reference
        self.modes = [[mode for mode in MODES if mode in candidates]]
        self.again = 0 if 'teacher' in candidates else -1
        self.runs = {mode: PairRun(mode, spec, bars, memory, match) for mode in candidates}
        self.module, self.rule, self.watch = module, rule, watch or contextlib.nullcontext()
        self.unread, self.pairs = Unread(spec, next(iter(candidates.values()))), []
        self.first: Frame | None = None
        self.most_results = 0
        self.pair_up = getattr(task_module(task), 'pair_up', None)
        self.before: StreamState | None = None
        self.substituted: list[int] = []
        self.one_to_one = getattr(task_module(task), 'ONE_TO_ONE', {})
        self.last: dict[str, StreamState | None] = {}
        self.decode_cases = getattr(reference, 'decode_cases', lambda outputs: {})
        self.made: dict[str, int] = {}

    def sample(self, entry: Frame, index: int, mode: str) -> Sample:
        return Sample(entry.name, entry)

    def want(self, sample: Sample, state: StreamState | None) -> Step:
        if state is None:
            self.reference.reset()
        with self.watch:
            result = self.reference.step(sample.data)
        self.before, self.first = state, self.first or sample.data
        self.most_results = max(self.most_results, len(result.detections))
        return Step(result.outputs, state=snapshot(self.reference.state), facts=dict(result=result))

    def got(self, sample: Sample, state: StreamState | None) -> Step:
        """Run a candidate; a memory that it has is not assigned, which may round it."""
        candidate = self.candidates[sample.mode]
        if self.runs[sample.mode].stopped:
            return Step()
        if state is None:
            candidate.reset()
        elif state is not self.last.get(sample.mode):
            candidate.state = snapshot(state)
        result = candidate.step(sample.data)
        self.last[sample.mode] = candidate.state
        return Step(result.outputs, state=self.last[sample.mode], facts=dict(result=result))

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: None) -> None:
        run, frame = self.runs[sample.mode], sample.data
        if isinstance(got, Exception):
            run.stopped = f'{frame.name}: the candidate failed: {one_line(got)[:200]}'
        if run.stopped:
            return
        # first: PyTorch in float64 is another last frame
        self._substitute(sample.mode, frame, got.facts['result'])
        moment = Moment(frame, want.facts['result'], got.facts['result'], want.state, got.state)
        run.add(moment, self._rounding(sample.mode, moment), self._rounding_of_results(moment))
        self.unread.look(moment.got.outputs, getattr(self.candidates[sample.mode], 'boxes_of', None))
        index, parts = len(run.series['name']) - 1, range(1, 2 * MAX_DRAWN, 2)
        places = [part * len(self.given) // (2 * MAX_DRAWN) for part in parts]
        if self.rule is not None and sample.mode == 'free' and index in places:
            title = f'{frame.name or f"frame {index}"}, free-running, frame {index + 1} of the drive'
            sides = moment.expected.detections, moment.got.detections
            self.pairs.append(bbox3d.pair_of(frame, self.rule, title, *sides))

    def after(self, sample: Sample, want: Step, got: Step | Exception) -> StreamState | None:
        run = self.runs[sample.mode]
        if run.stopped:
            return None
        if run.takes_over():
            return snapshot(want.state)
        return run.reordered(got.state) or got.state

    def ran_again(self, sample: Sample, first: Sequence[Step], second: Sequence[Step | Exception]) -> None:
        """Judge the second run of the first frame, after a reset of both sides."""
        run, name = self.runs['teacher'], sample.name
        if run.stopped:
            return
        if isinstance(second[1], Exception):
            run.stopped = f'{name}: the candidate failed: {one_line(second[1])[:200]}'
        else:
            self._compare_runs('engine', name, first[1], second[1])
        self._compare_runs('model', name, first[0], second[0])
        detections = (steps[0].facts['result'].detections for steps in (first, second))
        if not run.match(name, *detections).passed:
            run.faults[RESULTS_AGAIN].append(name)

    def finish(self) -> dict[str, SequenceRow]:
        """Return mode -> judgement."""
        return {mode: run.finish() for mode, run in self.runs.items()}

    def _again(self, moment: Moment) -> StepResult:
        """Run the reference on a frame from the memory before it."""
        self.own.state = self.before
        return self.own.step(moment.frame)

    def _rounding(self, mode: str, moment: Moment) -> Rounding | None:
        if mode != 'teacher' or self.module is None:
            return None
        tensors = named_tensors(moment.expected, moment.expected_state)
        distances = rounding_of(
            self.module, tensors, lambda: named_tensors(self._again(moment), self.reference.state)
        )

        def then_restored(draws: int) -> Mapping[str, np.ndarray]:
            try:
                return distances(draws)
            finally:
                self.reference.state = moment.expected_state

        return then_restored

    def _rounding_of_results(self, moment: Moment) -> Callable[[], Iterator[dict[str, np.ndarray]]] | None:
        """Return a function that yields `rounding` of `matching.pair_lists`, with one more draw each time."""
        if self.module is None or self.pair_up is None:
            return None
        expected = moment.expected.detections

        def roundings() -> Iterator[dict[str, np.ndarray]]:
            largest: dict[str, np.ndarray] = {}
            seeds = (None, *range(DRAWS))
            for drawn in draws_of(self.module, lambda seed: self._again(moment).detections, seeds):
                self.reference.state = moment.expected_state
                pairing = self.pair_up(expected, drawn)
                rows = [*pairing.matched, *pairing.outside]
                for title in pairing.gaps.keys() - {'score'}:
                    own = np.zeros(len(expected.scores))
                    own[rows] = ROUNDINGS * pairing.gaps[title]
                    largest[title] = np.maximum(largest.get(title, 0), own)
                yield largest
            self.reference.state = moment.expected_state  # a draw may have failed

        return roundings

    def _substitute(self, mode: str, frame: Frame, got: StepResult) -> None:
        run = self.runs[mode]
        if mode != 'teacher':
            return
        if run.bars.cosine is not None or not hasattr(self.reference, 'boxes_of'):
            self.substituted.append(0)
            return
        expected = self.reference.boxes_of(got.outputs)
        if expected is None:
            self.substituted.append(0)
            return
        row = run.match(frame.name, expected, got.detections, **self.one_to_one)
        self.substituted.append(row.matched)
        if not row.passed:
            fault = "your test path returns different results from the file's outputs"
            run.faults[fault].append(f'{frame.name} ({row.reason})')
        has_decoder = hasattr(self.candidates[mode], 'boxes_of')
        for title, outputs in self.decode_cases(got.outputs).items() if has_decoder else ():
            self.made.setdefault(title, 0)
            if outputs is None:
                continue
            self.made[title] += 1
            sides = self.reference.boxes_of(outputs), self.candidates[mode].boxes_of(outputs)
            row = run.match(frame.name, *sides, **self.one_to_one)
            if not row.passed:
                fault = f'your test path returns different results from outputs with {title}'
                run.faults[fault].append(f'{frame.name} ({row.reason})')

    def _compare_runs(self, side: str, name: str, first: Step, second: Step) -> None:
        if same_bits(first.tensors, second.tensors):
            return
        run, min_cosine = self.runs['teacher'], self.runs['teacher'].bars.cosine
        compared = tuple(tensor for tensor in run.outputs if tensor.name in first.tensors)
        sides = ({tensor.name: step.tensors[tensor.name] for tensor in compared} for step in (first, second))
        for row in compare_tensors(*sides, GraphSpec('', (), compared)):
            near = min_cosine is not None and not out_of_bars(row, min_cosine)
            if not row.passed and not near:
                fault = (
                    f'the {side} returns a different {row.tensor} when the first frame runs again '
                    'after a reset'
                )
                run.faults[fault].append(name)


def named_tensors(result: StepResult, state: StreamState | None) -> dict[str, np.ndarray]:
    """Return the outputs of a frame, and the memory after it under `memory NAME`."""
    return {**result.outputs, **memory_tensors(state)}


def memory_tensors(state: StreamState | None) -> dict[str, np.ndarray]:
    return {} if state is None else {f'memory {name}': array for name, array in state.tensors.items()}


def snapshot(state: StreamState | None) -> StreamState | None:
    """Return a copy of a memory independent of the engine's buffers."""
    if state is None:
        return None
    tensors = {name: np.array(tensor) for name, tensor in state.tensors.items()}
    return dataclasses.replace(state, tensors=tensors)


class PairRun:
    """Judges one candidate in one mode, one frame after the other.

    Attributes:
        worst_distance, worst_score, worst_iou: of counted pairs.
        excused: lines on results beside a tie, of all frames.
        undecided: frames in which `MemorySpec.decided` was left out.
        tied: `ties`, `tied_frames`, `affected_frames` and `taken_over` of `SequenceRow`, so far.
        pairings: pairs of memory rows, of each kind; [] for a memory without scores.
        outputs: specs of the outputs other than state; `names` are compared.
        last: scene and time in s of the last frame.
        faults: fault -> names of the frames.
        stopped: why the candidate stopped, or ''.
        parted: in the last frame only a tie decided which rows are kept, with equal results.
    """

    def __init__(
        self,
        mode: str,
        spec: GraphSpec,
        bars: DriveBars,
        memory: MemorySpec,
        match: Callable[..., DetectionRow],
    ) -> None:
        state = {source for source, _ in spec.state}
        self.mode, self.bars, self.memory, self.match = mode, bars, memory, match
        self.outputs = tuple(tensor for tensor in spec.outputs if tensor.name not in state)
        self.pairings: list[RowPairing] = [InstancePairing(rows) for rows in memory.instances]
        if memory.scores:
            self.pairings = [RowPairing(memory)]
        self.names: set[str] | None = None
        self.faults: dict[str, list[str]] = collections.defaultdict(list)
        self.stopped = ''
        self.tensors = WorstRows(mode == 'free', bars.cosine)
        self.series: dict[str, Any] = dict(
            name=[], reset=[], gap_s=[], reference=[], matched=[], extra=[], ties=[], **self.tensors.series
        )
        self.totals = dict(reference=0, matched=0, missing=0, extra=0, outside=0, low=0, low_alone=0)
        self.tied = dict(ties=0, tied_frames=0, affected_frames=0, taken_over=0)
        self.worst_distance: float | None = None
        self.last: tuple[str, float] | None = None
        self.worst_score, self.worst_iou, self.parted = 0.0, 1.0, False
        self.excused: list[str] = []
        self.undecided = 0
        self.alone: list[str] = []

    def add(
        self,
        moment: Moment,
        rounding: Rounding | None = None,
        roundings: Callable[[], Iterator[dict[str, np.ndarray]]] | None = None,
    ) -> None:
        """Judge one frame by both sides' results and memories.

        `rounding`: of `named_tensors`; `roundings`: of the results, more and more.
        """
        frame, last = moment.frame, self.last
        name = frame.name or f'frame {len(self.series["name"])}'
        self.last = frame.scene_token, frame.timestamp_s
        same_scene = last is not None and last[0] == frame.scene_token
        self.series['gap_s'].append(round(frame.timestamp_s - last[1], 6) if same_scene else None)
        self.series['name'].append(name)
        self.series['reset'].append(bool(moment.expected.was_reset))
        if moment.expected.was_reset or self.mode == 'teacher':
            self._forget()
        self._check_reset(moment, name)
        followed = self._follow(moment, name)
        decided = self._decided(moment, name)
        undecided = 0 if decided is moment else moment.expected.undecided
        self.series['ties'].append(sum(kind.ties for kind in followed) + undecided)
        self._compare_tensors(decided, followed, name, rounding)
        self.parted = self._match_detections(decided, name, roundings) and any(
            kind.parted for kind in followed
        )

    def _forget(self) -> None:
        for pairing in self.pairings:
            pairing.forget()

    def takes_over(self) -> bool:
        """Whether a free candidate goes on with the reference's memory."""
        allowed = max(self.bars.frames // FRAMES_PER_TAKEOVER, 1)
        if self.mode != 'free' or not self.parted or self.tied['taken_over'] >= allowed:
            return False
        self.tied['taken_over'] += 1
        self._forget()
        return True

    def reordered(self, state: StreamState | None) -> StreamState | None:
        """Return a free candidate's memory in the reference's order, or None."""
        if self.mode != 'free' or state is None:
            return None
        changed: dict[str, np.ndarray] = {}
        for pairing in self.pairings:
            if isinstance(pairing, InstancePairing):
                changed |= pairing.reordered(state)
        return dataclasses.replace(state, tensors={**state.tensors, **changed}) if changed else None

    def _check_reset(self, moment: Moment, name: str) -> None:
        frame, sides = moment.frame, ('reference', 'candidate')
        if moment.expected.was_reset != moment.got.was_reset:
            emptied, other_side = sides if moment.expected.was_reset else sides[::-1]
            self.faults[f'the {emptied} emptied its memory and the {other_side} did not'].append(name)
        for side, state in zip(sides, (moment.expected_state, moment.got_state), strict=True):
            if state is None:
                self.faults[f'the {side} keeps no memory after a frame'].append(name)
            elif not (
                state.scene_token == frame.scene_token
                and abs(state.timestamp_s - frame.timestamp_s) <= SAME_POSE
                and np.allclose(state.ego_pose, frame.ego_pose, rtol=0, atol=SAME_POSE)
            ):
                fault = f'the {side} has a memory of another frame (pose, time or scene)'
                self.faults[fault].append(name)

    def _follow(self, moment: Moment, name: str) -> list[Followed]:
        """Return how the rows of each kind are followed."""
        max_error = self.bars.score if self.mode == 'teacher' else np.inf
        found = [pairing.follow(moment, self.bars.tie, max_error) for pairing in self.pairings]
        for followed in found:
            # half precision hands on other instances of a memory that is chosen anew: results count alone
            if followed.fault and not (self.bars.near_counts and self.memory.instances):
                fault = 'the rows kept in memory differ by more than a tie'
                self.faults[fault].append(f'{name} ({followed.fault})')
        ties, pairs = sum(followed.ties for followed in found), zip(found, self.pairings, strict=True)
        self.tied['ties'] += ties
        self.tied['tied_frames'] += bool(ties)
        self.tied['affected_frames'] += any(of.rows is not None and pairing.affected for of, pairing in pairs)
        return found

    def _decided(self, moment: Moment, name: str) -> Moment:
        """Return the frame, without what undecided decisions changed."""
        count, sides = moment.expected.undecided, (moment.expected, moment.got)
        if not count or self.bars.cosine is not None:
            return moment
        specs = tuple(tensor for tensor in self.outputs if tensor.name in self.memory.decided)
        arrays = ({tensor.name: side.outputs[tensor.name] for tensor in specs} for side in sides)
        rows = compare_tensors(*arrays, GraphSpec('', (), specs))
        results = self.match(name, *(side.detections for side in sides), **self._limits)
        if all(row.passed for row in rows) and results.passed:
            return moment
        self.undecided += 1
        self.tied['ties'] += count
        self.tied['tied_frames'] += 1
        names = ', '.join(self.memory.decided)
        self.excused.append(f'{name}: {names} depend on {count} decisions at a threshold')
        expected, got = (
            dataclasses.replace(
                side,
                outputs={key: side.outputs[key] for key in side.outputs.keys() - {*self.memory.decided}},
                detections=side.detections.without_motion(),
            )
            for side in sides
        )
        return dataclasses.replace(moment, expected=expected, got=got)

    @property
    def _limits(self) -> dict[str, float]:
        bars = self.bars
        limits = dict(score_thr=bars.score_thr, distance_bar=bars.distance_m, score_bar=bars.score)
        return limits if bars.corner_m is None else dict(limits, corner_bar=bars.corner_m)

    def _compare_tensors(
        self, moment: Moment, followed: Sequence[Followed], name: str, rounding: Rounding | None
    ) -> None:
        expected, got = moment.expected.outputs, moment.got.outputs
        if self.names is None:
            self.names = {*self.memory.needed, *(expected.keys() & got.keys())}
        names = self.names - ({*self.memory.decided} - expected.keys())
        specs = tuple(tensor for tensor in self.outputs if tensor.name in names)
        last = {  # a graph may give the last layer alone
            tensor.name for tensor in specs if tensor.name in self.memory.needed and tensor.axes[:1] == (1,)
        }
        partners: dict[str, np.ndarray] = {}
        for of, pairing in zip(followed, self.pairings, strict=True):
            if of.queries is not None and not np.array_equal(of.queries, np.arange(len(of.queries))):
                partners |= dict.fromkeys(
                    {*pairing.spec.per_query} & expected.keys() & got.keys(), of.queries
                )

        def of_reference(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            kept = {tensor.name: arrays[tensor.name] for tensor in specs if tensor.name in arrays}
            kept |= {key: kept[key][-1:] for key in last & kept.keys()}
            paired = partners.keys() & kept.keys()
            return kept | {key: kept[key][..., partners[key] >= 0, :] for key in paired}

        candidate = {tensor.name: got[tensor.name] for tensor in specs if tensor.name in got}
        for key in partners.keys() & candidate.keys():
            candidate[key] = got[key][..., partners[key][partners[key] >= 0], :]
        distances = None if rounding is None else lambda draws: of_reference(rounding(draws))
        rows = compare_tensors(of_reference(expected), candidate, GraphSpec('', (), specs), distances)
        rows += self._compare_memory(moment, followed, rounding)
        for row in rows:
            self.tensors.add(row, name, len(self.series['name']))

    def _compare_memory(
        self, moment: Moment, followed: Sequence[Followed], rounding: Rounding | None
    ) -> list[TensorRow]:
        states = moment.expected_state, moment.got_state
        if None in states:
            return []
        expected, got = (memory_tensors(state) for state in states)
        specs = tuple(
            TensorSpec(f'memory {key}', 'float32', (), groups=(group,))
            for key, group in self.memory.tensors.items()
        )
        for side in (expected, got):  # the ids of tracks are compared by their pairing
            for kind in self.memory.instances:
                for key in kind.ids[1:2]:
                    side.pop(f'memory {key}', None)
        rows: dict[str, np.ndarray] = {}
        for of, pairing in zip(followed, self.pairings, strict=True):
            named = [f'memory {name}' for name in pairing.names(moment.expected_state)]
            keys = [key for key in named if key in expected]
            if of.rows is not None and all(np.shape(got.get(key))[:2] == (1, len(of.rows)) for key in keys):
                rows |= dict.fromkeys(keys, of.rows)

        def of_reference(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {**arrays, **{key: arrays[key][:, of >= 0] for key, of in rows.items() if key in arrays}}

        got |= {key: got[key][:, of[of >= 0]] for key, of in rows.items()}
        distances = None if rounding is None else lambda draws: of_reference(rounding(draws))
        return compare_tensors(of_reference(expected), got, GraphSpec('the memory', (), specs), distances)

    def _match_detections(
        self,
        moment: Moment,
        name: str,
        roundings: Callable[[], Iterator[dict[str, np.ndarray]]] | None,
    ) -> bool:
        sides = moment.expected.detections, moment.got.detections
        row = self.match(name, *sides, **self._limits)
        if not row.passed and row.outside and not row.broken and roundings is not None:
            for rounding in roundings():
                row = self.match(name, *sides, **self._limits, rounding=rounding)
                if row.passed:
                    break
        self.alone += [f'{name}: {line}' for line in row.alone]
        for key in self.totals:
            self.totals[key] += getattr(row, key)
        for key in ('reference', 'extra'):
            self.series[key].append(getattr(row, key))
        self.series['matched'].append(row.matched + (row.outside if self.bars.near_counts else 0))
        if row.broken or (not row.passed and not (row.missing or row.extra or row.outside)):
            self.faults['the detections cannot be compared'].append(f'{name} ({row.reason})')
        self.worst_score = max(self.worst_score, row.worst_score)
        self.worst_iou = min(self.worst_iou, row.worst_iou)
        self.excused += [f'{name}: at a tie: {line}' for line in row.excused]
        if row.worst_distance is not None:
            self.worst_distance = max(self.worst_distance or 0.0, row.worst_distance)
        return row.passed

    def finish(self) -> SequenceRow:
        totals = self.totals
        counted = max(totals['reference'], totals['matched'] + totals['outside'] + totals['extra'])
        same = totals['matched'] + (totals['outside'] if self.bars.near_counts else 0)
        gaps_s = [gap for gap in self.series['gap_s'] if gap is not None]
        usual_s = float(np.median(gaps_s)) if gaps_s else 0.0
        row = SequenceRow(
            mode=self.mode,
            frames=len(self.series['name']),
            resets=sum(self.series['reset'][1:]),
            time_jumps=sum(gap >= TIME_JUMP * usual_s for gap in gaps_s if usual_s > 0),
            **self.totals,
            match_rate=min(same / counted, 1.0) if counted else None,
            match_bar=self.bars.match_rate,
            worst_distance=self.worst_distance,
            worst_score=self.worst_score,
            worst_iou=self.worst_iou,
            excused=tuple(self.excused),
            **self.tied,
            tensors=tuple(self.tensors.worst.values()),
            series=self.series,
        )
        return dataclasses.replace(row, reasons=tuple(self._reasons(row)))

    def _reasons(self, row: SequenceRow) -> list[str]:
        bars = self.bars
        reasons = [self.stopped] if self.stopped else []
        for fault, frames in self.faults.items():
            count = f' ({len(frames)} frames)' if len(frames) > 1 else ''
            reasons.append(f'{fault}, first at {frames[0]}{count}')
        if row.frames < bars.frames:
            reasons.append(f'{row.frames} frames ran, a proof needs {bars.frames}')
        if row.resets < bars.resets:
            reasons.append(f'{row.resets} resets after the first frame, a proof needs {bars.resets}')
        reasons += self.tensors.reasons(row.frames)
        if self.undecided and self.undecided == row.frames:
            reasons.append(f'{", ".join(self.memory.decided)}: decisions at a threshold in every frame')
        if row.match_rate is None:
            reasons.append(NOTHING_FOUND)
        elif row.match_rate < bars.match_rate:
            reasons.append(
                f'{row.matched} of {row.reference} detections matched '
                f'({100 * row.match_rate:.2f} %, required {100 * bars.match_rate:g} %): '
                f'{row.missing} missing, {row.extra} extra, {row.outside} outside the bars'
                + (f': {first_lines(self.alone)}' if self.alone else '')
            )
        elif bars.cosine is None and row.low_alone > MAX_REST * (row.low + 2 * row.reference):
            reasons.append(
                f'{row.low_alone} of {row.low} results below the score threshold have no partner on the '
                f'other side'
            )
        return reasons


class WorstRows:
    """The worst row of every tensor (or column group) of a drive, and its error at every frame."""

    def __init__(self, free: bool, cosine: float | None) -> None:
        self.free, self.cosine = free, cosine
        self.worst: dict[str, TensorRow] = {}
        self.failed: dict[str, list[str]] = {}
        self.series: dict[str, dict[str, list[float | None]]] = dict(errors={}, ratios={})

    def add(self, row: TensorRow, name: str, count: int) -> None:
        """Judge the row of a tensor at the frame `name`, the drive's `count`-th from 1."""
        passed, reason = row.passed and row.max_abs is not None, row.reason
        if row.max_abs is not None:
            if self.free:
                passed, reason = True, ''
            elif self.cosine is not None:
                reason = out_of_bars(row, self.cosine)
                passed = not reason
        ratio = error_ratio(row) if row.max_abs is not None and row.tolerance else None
        for key, value in (('errors', row.max_abs), ('ratios', ratio)):
            values = self.series[key].setdefault(row.tensor, [])
            values += [None] * (count - 1 - len(values))
            values.append(value)
        if not passed:
            self.failed.setdefault(row.tensor, []).append(name)
        row = dataclasses.replace(row, passed=passed, reason=reason, at=name)
        if worst := self.worst.get(row.tensor):
            is_worse = (not row.passed, error_ratio(row)) > (not worst.passed, error_ratio(worst))
            row = row if is_worse else worst
        self.worst[row.tensor] = row

    def text_of(self, tensor: str, index: int) -> str:
        error, ratio = (self.series[key][tensor][index] for key in ('errors', 'ratios'))
        if error is None:
            return 'not comparable'
        return f'error {error:.3g}' + (f', {ratio:.3g} times its tolerance' if ratio is not None else '')

    def reasons(self, frames: int) -> list[str]:
        """Return one sentence per tensor that fails."""
        return [
            f'{tensor}: {len(names)} of {frames} frames fail, first {names[0]}; worst '
            f'{self.worst[tensor].at}: {self.worst[tensor].reason}'
            for tensor, names in self.failed.items()
        ]


def error_ratio(row: TensorRow) -> float:
    """Return a row's error over its tolerance; without a tolerance the error itself."""
    if row.max_abs is None:
        return np.inf
    return row.max_abs / row.tolerance if row.tolerance else row.max_abs
