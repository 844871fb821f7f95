"""Level 4 of the ladder: two engines over the same drive, frame by frame. Needs numpy only.

Teacher-forced, the candidate is given the reference's memory before each frame: every frame is judged alone,
by the tolerances. Free-running, each engine keeps its own memory as in a car: rounding accumulates, and the
detections have to stay the same. Only figures are kept per frame, no tensors: a drive may be of any length.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.compare.tensors import compare_tensors, same_bits
from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.proof.levels.sequence_run import Bars, Moment, PairRun
from mmdeploy_ext.runtime.frames import StreamState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mmdeploy_ext.proof.levels.sequence_ties import MemoryFacts
    from mmdeploy_ext.proof.verdict import SequenceRow
    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult

    Watch = Callable[[int, Frame, StepResult, Mapping[str, StepResult]], None]

MODES = ('teacher', 'free')


def run_pair(
    reference: Stepper,
    candidate: Stepper,
    frames: Iterable[Frame],
    spec: GraphSpec,
    mode: str = 'free',
    **settings: Any,
) -> SequenceRow:
    """Run two engines over a drive in one mode; see `run_modes` for the arguments."""
    return run_modes(reference, {mode: candidate}, frames, spec, **settings)[mode]


def run_modes(
    reference: Stepper,
    candidates: Mapping[str, Stepper],
    frames: Iterable[Frame],
    spec: GraphSpec,
    *,
    facts: MemoryFacts | None = None,
    bars: Bars | None = None,
    match: Callable[..., Any] | None = None,
    watch: Watch | None = None,
) -> dict[str, SequenceRow]:
    """Run the reference once over a drive, and beside it one candidate per mode.

    A candidate that fails at a frame is out, with that as its reason; the others go on.

    Args:
        reference: the unpatched PyTorch model.
        candidates: 'free' and/or 'teacher' -> an engine of its own.
        frames: the drive; read once.
        spec: of its outputs that are no state, logits and boxes are compared, and those that both give.
        facts: of the memory; None knows no ties.
        bars: what passes.
        match: `match_detections` of the task; default that of boxes in 3D.
        watch: called after every frame with its index, the frame, and both sides' results.

    Returns:
        mode -> what was found.
    """
    unknown = [mode for mode in candidates if mode not in MODES]
    if unknown:
        raise ValueError(f'mode {unknown[0]!r}: expected one of {", ".join(MODES)}')
    if match is None:
        from mmdeploy_ext.proof.tasks import task_module

        match = task_module('bbox3d').match_detections
    bars = bars or Bars()
    runs = {mode: PairRun(mode, spec, bars, facts, match) for mode in candidates}
    for stepper in (reference, *candidates.values()):
        stepper.reset()
    before: StreamState | None = None
    first: tuple[Frame, StepResult | None] | None = None
    for index, frame in enumerate(frames):
        expected = reference.step(frame)
        after = snapshot(reference.state)
        results = {}
        for mode, candidate in candidates.items():
            if runs[mode].stopped:
                continue
            if mode == 'teacher':
                candidate.state = snapshot(before)
            got = _step(candidate, frame, runs[mode])
            if got is not None:
                runs[mode].add(Moment(frame, expected, got, after, candidate.state))
                results[mode] = got
        first = first or (frame, results.get('teacher'))
        if watch is not None:
            watch(index, frame, expected, results)
        before = after
    _check_again(first, candidates, runs)
    return {mode: run.finish() for mode, run in runs.items()}


def _step(candidate: Stepper, frame: Frame, run: PairRun) -> StepResult | None:
    """Run one frame; an engine that fails is a reason, not an exception."""
    try:
        return candidate.step(frame)
    except (ValueError, IndexError, RuntimeError) as error:
        run.stop(f'{frame.name}: the candidate failed: {one_line(error)[:200]}')
        return None


def _check_again(
    first: tuple[Frame, StepResult | None] | None,
    candidates: Mapping[str, Stepper],
    runs: Mapping[str, PairRun],
) -> None:
    """Run the first frame of a drive again after the last: other bits have to be within the tolerances.

    Args:
        first: the frame, and what the teacher-forced candidate gave; None where there is none, or it failed.
        candidates: by mode.
        runs: by mode; another result becomes a fault of the teacher-forced one.
    """
    if first is None or first[1] is None or runs['teacher'].stopped:
        return
    (frame, known), candidate, run = first, candidates['teacher'], runs['teacher']
    candidate.reset()
    second = _step(candidate, frame, run)
    if second is None or same_bits(known.outputs, second.outputs):
        return
    compared = tuple(tensor for tensor in run.outputs if tensor.name in known.outputs)
    sides = ({one.name: side.outputs[one.name] for one in compared} for side in (known, second))
    least = run.bars.cosine
    for row in compare_tensors(*sides, GraphSpec('', (), compared)):
        near = least is not None and row.cosine is not None and row.cosine >= least
        if not row.passed and not near:
            run.faults.add(f'a second run of the same frame gives another {row.tensor}', frame.name)


def snapshot(state: StreamState | None) -> StreamState | None:
    """Return a copy of a memory that no engine's buffers can change."""
    if state is None:
        return None
    tensors = {name: np.array(array) for name, array in state.tensors.items()}
    return dataclasses.replace(state, tensors=tensors)
