"""Two engines over the same drive, frame by frame. Needs numpy only."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import ShapeError, one_line
from mmdeploy_ext.proving.explain import matched
from mmdeploy_ext.proving.subject import PLAIN, Sample, Started, Step, Subject, Unread
from mmdeploy_ext.runtime.tasks import bbox3d, task_module
from mmdeploy_ext.spec.comparison import compare_tensors
from mmdeploy_ext.spec.matching import MAX_REST
from mmdeploy_ext.spec.results import FLOAT32, SequenceRow, first_lines
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult, StreamState
    from mmdeploy_ext.spec.memory import InstanceRows, MemorySpec
    from mmdeploy_ext.spec.results import Bars, Case, DetectionRow, TensorRow


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

    def follow(self, want: Step, got: Step, tie: float, max_error: float) -> Followed:
        """Follow the memories over a frame, and tell ties from errors."""
        sides, states = [want.tensors, got.tensors], (want.state, got.state)
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

    def follow(self, want: Step, got: Step, tie: float, max_error: float) -> Followed:
        spec, sides, states = self.spec, [want.tensors, got.tensors], (want.state, got.state)
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
MAX_DRAWN = 4
"""Maximum of sweeps, or frames, in the report."""
FRAMES_PER_TAKEOVER = 20
"""Frames per allowed takeover of the reference's memory."""
MATCH_RATE = 0.999
"""Least matched share of the longer list in float32, over all frames, unless the task has its own."""
TIE, HALF_TIE = 2e-5, 2e-3
"""Scores in the top-k tie within this plus twice the frame's largest score error: in float32, below it."""
SUMMED = 'reference', 'matched', 'missing', 'extra', 'outside', 'low', 'low_alone'


@dataclasses.dataclass(frozen=True)
class DriveLength:
    """Least number of frames of a proof, and of resets of the memory after the first frame."""

    frames: int = 100
    resets: int = 1


FULL_DRIVE = DriveLength()
"""What a claim about drift needs: a hundred frames with a scene change."""
SHORT_DRIVE = DriveLength(frames=2, resets=0)
"""What `--verify` needs."""
NEW_SCENE = 'the first frame again'
"""Scene of the first frame when it runs again at the end."""


class Drives(Subject):
    """The reference and one candidate per mode over the frames of a drive, from empty memories.

    Attributes:
        last: 'reference' or a mode -> memory that its stepper has.
        first, most_results: the first frame, and the most results of a frame in PyTorch.
        frames_run: frames so far.
        drives: seed of a draw, or None for float64 -> the reference's results on all frames.
        own: the reference without a recording, for further runs of a frame.
        runs: mode -> `DriveRun`.
        of_reference: brings the reference's tensors into the form in which the last frame was compared.
        made: title of the reference's `decode_cases` -> number of frames whose outputs allow the case.
        notes: on single frames.
    """

    def __init__(
        self,
        reference: Stepper,
        candidates: Mapping[str, Stepper],
        spec: GraphSpec,
        *,
        memory: MemorySpec,
        length: DriveLength = FULL_DRIVE,
        bars: Bars = FLOAT32,
        task: str = 'bbox3d',
        settings: Mapping[str, Any] | None = None,
        frames: Collection[Frame] = (),
        module: Any = None,
        rule: Any = None,
        watch: Any = None,
        stored: bool = False,
    ) -> None:
        """Keep the engines.

        Args:
            reference: the unpatched PyTorch model.
            candidates: 'free' and/or 'teacher' -> the file on its engine.
            spec: spec of the files; the outputs that `memory` needs and both engines give are compared.
            memory: the family's description.
            length: least length of the drive.
            bars: of the files' precision.
            task: name of the task that matches results.
            settings: thresholds and limits of the post-processing.
            frames: of the drive.
            module: the reference's, for runs in float64; None: rounding is not known.
            rule: of the preprocessing, to draw frames; None: none is drawn.
            watch: context that looks at the reference's runs.
            stored: both sides are stored results.
        """
        if unknown := [mode for mode in candidates if mode not in MODES]:
            raise ValueError(f'mode {unknown[0]!r}: expected one of {", ".join(MODES)}')
        self.reference, self.candidates, self.given = reference, candidates, frames
        self.own, self.memory, self.length = reference, memory, length
        self.bars, self.task, self.settings = bars, task, settings or {}
        self.modes = [[mode for mode in MODES if mode in candidates]]
        self.again = -1 if stored or 'teacher' not in candidates else 0
        self.runs = {mode: DriveRun(mode, self) for mode in candidates}
        self.module, self.rule, self.watch = module, rule, watch or contextlib.nullcontext()
        self.unread, self.pairs, self.stored = Unread(spec, next(iter(candidates.values()))), [], stored
        self.first: Frame | None = None
        self.most_results = self.frames_run = 0
        self.drives: dict[int | None, list[Any]] = {}
        self.last: dict[str, StreamState | None] = {}
        self.made: dict[str, int] = {}
        self.notes: list[str] = []
        state = {source for source, _ in spec.state}
        self.outputs = tuple(tensor for tensor in spec.outputs if tensor.name not in state)
        ids = {name for kind in memory.instances for name in kind.ids[1:2]}  # compared by their pairing
        self.left_out = {f'memory {name}' for name in ids}
        self.of_memory = tuple(
            TensorSpec(f'memory {name}', 'float32', (), groups=(group,))
            for name, group in memory.tensors.items()
            if name not in ids
        )
        self.names: set[str] | None = None

    def sample(self, entry: Frame, index: int, mode: str) -> Sample:
        return Sample(entry.name, entry, titles=[entry.name])

    def want(self, sample: Sample, state: StreamState | None) -> Step:
        self.first = self.first or sample.data
        if state is None and self.frames_run:  # again: the user's own code empties the memory at a new scene
            sample = dataclasses.replace(sample, data=dataclasses.replace(sample.data, scene_token=NEW_SCENE))
        with self.watch:
            step = self._step('reference', self.reference, sample, state)
        self.frames_run += 1
        self.most_results = max(self.most_results, len(step.results[0]))
        return step

    def got(self, sample: Sample, state: StreamState | None) -> Step:
        if stopped := self.runs[sample.mode].stopped:
            raise ShapeError(stopped)
        return self._step(sample.mode, self.candidates[sample.mode], sample, state)

    def _step(self, side: str, stepper: Stepper, sample: Sample, state: StreamState | None) -> Step:
        """Run a side from a memory; one that it has is not assigned, which may round it."""
        if state is None:
            stepper.reset()
        elif state is not self.last.get(side):
            stepper.state = snapshot(state)
        self.last[side] = None
        result = stepper.step(sample.data)
        self.last[side] = snapshot(stepper.state) if side == 'reference' else stepper.state
        facts = dict(was_reset=result.was_reset, undecided=result.undecided, outputs=result.outputs)
        tensors = named_tensors(result, self.last[side])
        return Step(tensors, [result.detections], self.last[side], probe=result.outputs, facts=facts)

    def _again(self, sample: Sample, state: StreamState | None) -> StepResult:
        """Run the reference on a frame from the memory before it; it has another one afterwards."""
        self.last['reference'] = None
        self.own.state = state
        return self.own.step(sample.data)

    def tensors(self, sample: Sample, state: StreamState | None, got: Step) -> Mapping[str, np.ndarray]:
        return self.of_reference(named_tensors(self._again(sample, state), self.own.state))

    def results(self, sample: Sample, state: StreamState | None, seed: int | None = PLAIN) -> Sequence[Any]:
        """Run a frame from a memory; in draws of a free mode the drive: its rounding adds up."""
        if sample.mode != 'free' or seed == PLAIN:
            return [self._again(sample, state).detections]
        if seed not in self.drives:
            self.last['reference'] = None
            self.own.reset()
            self.drives[seed] = [self.own.step(frame).detections for frame in self.given]
        return [self.drives[seed][self.frames_run - 1]]

    def on(self, sample: Sample, got: Step) -> Started | None:
        """Run the reference's test path on a teacher-forced file's outputs, and on changed ones."""
        boxes_of = getattr(self.reference, 'boxes_of', None)
        if sample.mode != 'teacher' or boxes_of is None:
            return None
        outputs, cases = got.facts['outputs'], {}
        decode = getattr(self.candidates['teacher'], 'boxes_of', None)
        if decode is not None and hasattr(self.reference, 'decode_cases'):
            cases = self.reference.decode_cases(outputs)
        for title, changed in cases.items():
            self.made[title] = self.made.get(title, 0) + (changed is not None)

        def between() -> list[tuple[str, str, Any, Any]]:
            changed = ((title, values) for title, values in cases.items() if values is not None)
            titles = ((f'outputs with {title}', values) for title, values in changed)
            return [(self.task, title, boxes_of(values), decode(values)) for title, values in titles]

        return Started(lambda: [boxes_of(outputs)], between=between)

    def align(self, sample: Sample, want: Step, got: Step) -> tuple[Step, Step, Sequence[TensorRow]]:
        """Pair rows of queries and memories; leave out what an undecided decision of PyTorch changed."""
        run = self.runs[sample.mode]
        run.follow(want, got)
        if self.names is None:
            self.names = {*self.memory.needed, *(want.tensors.keys() & got.tensors.keys())}
        decided, run.undecided = self._decided(want, got), 0
        if decided is not None:
            (want, got), run.undecided = decided, want.facts['undecided']
        names = self.names - ({*self.memory.decided} - want.tensors.keys())
        specs = [tensor for tensor in self.outputs if tensor.name in names]
        # a graph may give the last layer alone
        last = {one.name for one in specs if one.name in self.memory.needed and one.axes[:1] == (1,)}
        has_memories = None not in (want.state, got.state)
        self.spec = GraphSpec('', (), (*specs, *self.of_memory) if has_memories else tuple(specs))
        pairs = run.pairs(want, got)

        def compared(side: int, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            kept = {one.name: tensors[one.name] for one in specs if one.name in tensors}
            if has_memories:
                of_memory = (name for name in tensors if name.startswith('memory '))
                kept |= {name: tensors[name] for name in of_memory if name not in self.left_out}
            if side == 0:
                kept |= {name: kept[name][-1:] for name in last & kept.keys()}
            for name in pairs.keys() & kept.keys():
                axis, rows = pairs[name]
                kept[name] = kept[name].take(rows[rows >= 0] if side else np.flatnonzero(rows >= 0), axis)
            return kept

        self.of_reference = functools.partial(compared, 0)
        want, got = (
            dataclasses.replace(step, tensors=compared(side, step.tensors))
            for side, step in enumerate((want, got))
        )
        return want, got, ()

    def _decided(self, want: Step, got: Step) -> tuple[Step, Step] | None:
        """Return both steps without what undecided decisions changed; None: nothing changed."""
        if not want.facts['undecided'] or not self.bars.is_float32:
            return None
        specs = tuple(tensor for tensor in self.outputs if tensor.name in self.memory.decided)
        arrays = ({tensor.name: step.tensors[tensor.name] for tensor in specs} for step in (want, got))
        rows = [*compare_tensors(*arrays, GraphSpec('', (), specs))]
        rows += matched(self, [''], want.results, got.results)
        if all(row.passed for row in rows):
            return None

        def without(step: Step) -> Step:
            names = step.tensors.keys() - {*self.memory.decided}
            tensors = {name: step.tensors[name] for name in step.tensors if name in names}
            return dataclasses.replace(step, tensors=tensors, results=[step.results[0].without_motion()])

        return without(want), without(got)

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: Case) -> None:
        run, frame = self.runs[sample.mode], sample.data
        if isinstance(got, Exception):
            run.stopped = run.stopped or f'{frame.name}: the candidate failed: {one_line(got)[:200]}'
            return
        run.add(frame, want, got, case)
        self.notes += case.notes
        self.unread.look(got.facts['outputs'], getattr(self.candidates[sample.mode], 'boxes_of', None))
        index, parts = len(run.results) - 1, range(1, 2 * MAX_DRAWN, 2)
        places = [part * len(self.given) // (2 * MAX_DRAWN) for part in parts]
        if self.rule is not None and sample.mode == 'free' and index in places:
            title = f'{frame.name or f"frame {index}"}, free-running, frame {index + 1} of the drive'
            self.pairs.append(bbox3d.pair_of(frame, self.rule, title, want.results[0], got.results[0]))

    def after(self, sample: Sample, want: Step, got: Step | Exception) -> StreamState | None:
        """Return the file's memory, in the reference's order; the reference's, where a tie parted them."""
        run = self.runs[sample.mode]
        if run.stopped or self.stored:
            return None
        if run.mode != 'free' or got.state is None:
            return got.state
        if run.parted and run.tied['taken_over'] < max(self.length.frames // FRAMES_PER_TAKEOVER, 1):
            run.tied['taken_over'] += 1
            run.forget()
            return snapshot(want.state)
        changed: dict[str, np.ndarray] = {}
        for pairing in run.pairings:
            if isinstance(pairing, InstancePairing):
                changed |= pairing.reordered(got.state)
        tensors = {**got.state.tensors, **changed}
        return dataclasses.replace(got.state, tensors=tensors) if changed else got.state

    def finish(self) -> dict[str, SequenceRow]:
        """Return mode -> judgement."""
        return {mode: run.finish() for mode, run in self.runs.items()}


def named_tensors(result: StepResult, state: StreamState | None) -> dict[str, np.ndarray]:
    """Return the outputs of a frame, and the memory after it under `memory NAME`."""
    tensors = {} if state is None else state.tensors
    return {**result.outputs, **{f'memory {name}': array for name, array in tensors.items()}}


def snapshot(state: StreamState | None) -> StreamState | None:
    """Return a copy of a memory independent of the engine's buffers."""
    if state is None:
        return None
    tensors = {name: np.array(tensor) for name, tensor in state.tensors.items()}
    return dataclasses.replace(state, tensors=tensors)


class DriveRun:
    """What one mode of a drive found: pairs of memory rows, faults and the frames' figures.

    Attributes:
        results: `DetectionRow` of each frame.
        substituted: number of results per frame that the reference made of the file's outputs.
        worst, failed: tensor -> its worst row, and names of the frames in which it fails.
        tied: `ties`, `tied_frames`, `affected_frames` and `taken_over` of `SequenceRow`, so far.
        pairings: pairs of memory rows, of each kind; [] for a memory without scores.
        followed: how they were paired in the last frame.
        undecided: decisions of the last frame whose outcome was left out.
        last: scene and time in s of the last frame.
        faults: fault -> names of the frames.
        stopped: why the candidate stopped, or ''.
        parted: in the last frame only a tie decided which rows are kept, with equal results.
    """

    def __init__(self, mode: str, drive: Drives) -> None:
        self.mode, self.bars, self.memory, self.length = mode, drive.bars, drive.memory, drive.length
        self.match_rate = self.bars.match_rate
        if self.bars.is_float32:
            self.match_rate = getattr(task_module(drive.task), 'MATCH_RATE', MATCH_RATE)
        self.pairings: list[RowPairing] = [InstancePairing(rows) for rows in self.memory.instances]
        if self.memory.scores:
            self.pairings = [RowPairing(self.memory)]
        self.followed: list[Followed] = []
        self.faults: dict[str, list[str]] = collections.defaultdict(list)
        self.stopped, self.parted, self.undecided, self.undecided_frames = '', False, 0, 0
        self.worst: dict[str, TensorRow] = {}
        self.failed: dict[str, list[str]] = {}
        self.series: dict[str, Any] = dict(
            name=[], reset=[], gap_s=[], reference=[], matched=[], extra=[], ties=[], errors={}, ratios={}
        )
        self.results: list[DetectionRow] = []
        self.substituted: list[int] = []
        self.tied = dict(ties=0, tied_frames=0, affected_frames=0, taken_over=0)
        self.last: tuple[str, float] | None = None
        self.excused: list[str] = []
        self.alone: list[str] = []

    def forget(self) -> None:
        for pairing in self.pairings:
            pairing.forget()

    def follow(self, want: Step, got: Step) -> None:
        """Follow the rows of each kind over a frame."""
        if want.facts['was_reset'] or self.mode == 'teacher':
            self.forget()
        tie, error = (TIE, bbox3d.SCORE_BAR) if self.bars.is_float32 else (HALF_TIE, self.bars.score)
        error = error if self.mode == 'teacher' else np.inf
        self.followed = [pairing.follow(want, got, tie, error) for pairing in self.pairings]

    def pairs(self, want: Step, got: Step) -> dict[str, tuple[int, np.ndarray]]:
        """Return tensor -> axis of its rows, and the file's row for each of the reference's, -1 for none."""
        pairs: dict[str, tuple[int, np.ndarray]] = {}
        both = want.tensors.keys() & got.tensors.keys()
        for followed, pairing in zip(self.followed, self.pairings, strict=True):
            queries, rows = followed.queries, followed.rows
            if queries is not None and not np.array_equal(queries, np.arange(len(queries))):
                pairs |= dict.fromkeys({*pairing.spec.per_query} & both, (-2, queries))
            if rows is not None:
                names = [f'memory {name}' for name in pairing.names(want.state)]
                names = [name for name in names if name in want.tensors]
                if all(np.shape(got.tensors.get(name))[:2] == (1, len(rows)) for name in names):
                    pairs |= dict.fromkeys(names, (1, rows))
        return pairs

    def add(self, frame: Frame, want: Step, got: Step, case: Case) -> None:
        """Add a judged frame."""
        name, last = frame.name or f'frame {len(self.results)}', self.last
        self.last = frame.scene_token, frame.timestamp_s
        same_scene = last is not None and last[0] == frame.scene_token
        self.series['gap_s'].append(round(frame.timestamp_s - last[1], 6) if same_scene else None)
        self.series['name'].append(name)
        self.series['reset'].append(bool(want.facts['was_reset']))
        self.substituted.append(sum(row.matched for row in case.substituted))
        for rows, outputs in ((case.substituted, "the file's outputs"), (case.inner, '')):
            for row in rows:
                if not row.passed:
                    fault = f'your test path returns different results from {outputs or row.image}'
                    self.faults[fault].append(f'{name} ({row.reason})')
        self._check_reset(frame, want, got, name)
        self._add_ties(name)
        for row in case.tensors:
            self._add_tensor(row, name)
        (row,) = case.detections
        self.results.append(row)
        for key in ('reference', 'extra'):
            self.series[key].append(getattr(row, key))
        self.series['matched'].append(row.matched + (0 if self.bars.is_float32 else row.outside))
        if row.broken or (not row.passed and not (row.missing or row.extra or row.outside)):
            self.faults['the detections cannot be compared'].append(f'{name} ({row.reason})')
        self.alone += [f'{name}: {line}' for line in row.alone]
        self.excused += [f'{name}: at a tie: {line}' for line in row.excused]
        self.parted = row.passed and any(followed.parted for followed in self.followed)

    def _check_reset(self, frame: Frame, want: Step, got: Step, name: str) -> None:
        sides = ('reference', 'candidate')
        if want.facts['was_reset'] != got.facts['was_reset']:
            emptied, other_side = sides if want.facts['was_reset'] else sides[::-1]
            self.faults[f'the {emptied} emptied its memory and the {other_side} did not'].append(name)
        for side, state in zip(sides, (want.state, got.state), strict=True):
            if state is None:
                self.faults[f'the {side} keeps no memory after a frame'].append(name)
            elif not (
                state.scene_token == frame.scene_token
                and abs(state.timestamp_s - frame.timestamp_s) <= SAME_POSE
                and np.allclose(state.ego_pose, frame.ego_pose, rtol=0, atol=SAME_POSE)
            ):
                fault = f'the {side} has a memory of another frame (pose, time or scene)'
                self.faults[fault].append(name)

    def _add_ties(self, name: str) -> None:
        pairs = [*zip(self.followed, self.pairings, strict=True)]
        for followed, _ in pairs:
            # half precision hands on other instances of a memory that is chosen anew: results count alone
            if followed.fault and (self.bars.is_float32 or not self.memory.instances):
                fault = 'the rows kept in memory differ by more than a tie'
                self.faults[fault].append(f'{name} ({followed.fault})')
        if self.undecided:
            names = ', '.join(self.memory.decided)
            self.excused.append(f'{name}: {names} depend on {self.undecided} decisions at a threshold')
            self.undecided_frames += 1
        ties = sum(followed.ties for followed, _ in pairs)
        self.tied['ties'] += ties + self.undecided
        self.tied['tied_frames'] += bool(ties) + bool(self.undecided)
        affected = (one.rows is not None and pairing.affected for one, pairing in pairs)
        self.tied['affected_frames'] += any(affected)
        self.series['ties'].append(ties + self.undecided)

    def _add_tensor(self, row: TensorRow, name: str) -> None:
        """Add the row of a tensor at the last frame; a free one may drift."""
        if row.max_abs is None:
            row = dataclasses.replace(row, passed=False)
        elif self.mode == 'free':
            row = dataclasses.replace(row, passed=True, reason='')
        has_bar = row.max_abs is not None and (row.tolerance or row.tolerance is None)
        for key, value in (('errors', row.max_abs), ('ratios', self._ratio(row) if has_bar else None)):
            values = self.series[key].setdefault(row.tensor, [])
            values += [None] * (len(self.series['name']) - 1 - len(values))
            values.append(value)
        if not row.passed:
            self.failed.setdefault(row.tensor, []).append(name)
        row = dataclasses.replace(row, at=name)
        if worst := self.worst.get(row.tensor):
            is_worse = (not row.passed, self._ratio(row)) > (not worst.passed, self._ratio(worst))
            row = row if is_worse else worst
        self.worst[row.tensor] = row

    def _ratio(self, row: TensorRow) -> float:
        """Return a row's error over what is allowed, of the cosine below float32; else the error itself."""
        if row.max_abs is None:
            return np.inf
        if row.tolerance is None and row.cosine is not None:
            return (1 - row.cosine) / (1 - self.bars.cosine)
        return row.max_abs / row.tolerance if row.tolerance else row.max_abs

    def finish(self) -> SequenceRow:
        totals = {key: sum(getattr(row, key) for row in self.results) for key in SUMMED}
        counted = max(totals['reference'], totals['matched'] + totals['outside'] + totals['extra'])
        same = totals['matched'] + (0 if self.bars.is_float32 else totals['outside'])
        gaps_s = [gap for gap in self.series['gap_s'] if gap is not None]
        usual_s = float(np.median(gaps_s)) if gaps_s else 0.0
        distances = [row.worst_distance for row in self.results if row.worst_distance is not None]
        row = SequenceRow(
            mode=self.mode,
            frames=len(self.results),
            resets=sum(self.series['reset'][1:]),
            time_jumps=sum(gap >= TIME_JUMP * usual_s for gap in gaps_s if usual_s > 0),
            **totals,
            match_rate=min(same / counted, 1.0) if counted else None,
            match_bar=self.match_rate,
            worst_distance=max(distances, default=None),
            worst_score=max((row.worst_score for row in self.results), default=0.0),
            worst_iou=min((row.worst_iou for row in self.results), default=1.0),
            excused=tuple(self.excused),
            **self.tied,
            tensors=tuple(self.worst.values()),
            series=self.series,
        )
        return dataclasses.replace(row, reasons=tuple(self._reasons(row)))

    def _reasons(self, row: SequenceRow) -> list[str]:
        reasons = [self.stopped] if self.stopped else []
        for fault, frames in self.faults.items():
            count = f' ({len(frames)} frames)' if len(frames) > 1 else ''
            reasons.append(f'{fault}, first at {frames[0]}{count}')
        if row.frames < self.length.frames:
            reasons.append(f'{row.frames} frames ran, a proof needs {self.length.frames}')
        if row.resets < self.length.resets:
            reasons.append(f'{row.resets} resets after the first frame, a proof needs {self.length.resets}')
        reasons += [
            f'{tensor}: {len(names)} of {row.frames} frames fail, first {names[0]}; worst '
            f'{self.worst[tensor].at}: {self.worst[tensor].reason}'
            for tensor, names in self.failed.items()
        ]
        if self.undecided_frames and self.undecided_frames == row.frames:
            reasons.append(f'{", ".join(self.memory.decided)}: decisions at a threshold in every frame')
        if row.match_rate is None:
            reasons.append(NOTHING_FOUND)
        elif row.match_rate < self.match_rate:
            reasons.append(
                f'{row.matched} of {row.reference} detections matched '
                f'({100 * row.match_rate:.2f} %, required {100 * self.match_rate:g} %): '
                f'{row.missing} missing, {row.extra} extra, {row.outside} outside the bars'
                + (f': {first_lines(self.alone)}' if self.alone else '')
            )
        elif self.bars.is_float32 and row.low_alone > MAX_REST * (row.low + 2 * row.reference):
            reasons.append(
                f'{row.low_alone} of {row.low} results below the score threshold have no partner on the '
                f'other side'
            )
        return reasons
