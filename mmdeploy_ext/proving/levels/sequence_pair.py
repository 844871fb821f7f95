"""Level 4 of a proof: two engines over the same drive, frame by frame. Needs numpy only.

Teacher-forced, the candidate is given the reference's memory before each frame: every frame is judged alone,
by the tolerances. Free-running, each engine keeps its own memory as in a car: rounding accumulates, and the
detections have to stay the same; but for ties that decide what is kept, see `PairRun.takes_over`. Only
figures are kept per frame, no tensors: a drive may be of any length.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.proving.levels.run_twice import Clock, attempt
from mmdeploy_ext.proving.levels.sequence_run import Bars, Moment, PairRun
from mmdeploy_ext.proving.tasks import task_module
from mmdeploy_ext.proving.tensors import compare_tensors, same_bits
from mmdeploy_ext.runtime.frames import StreamState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.families.memory import MemorySpec
    from mmdeploy_ext.proving.results import SequenceRow
    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult

MODES = ('teacher', 'free')


class Modes:
    """The reference and, beside it, one candidate per mode, frame by frame; all memories are emptied first.

    A candidate that fails at a frame is out, with that as its reason; the others go on.
    """

    def __init__(
        self,
        reference: Stepper,
        candidates: Mapping[str, Stepper],
        spec: GraphSpec,
        *,
        memory: MemorySpec,
        bars: Bars | None = None,
        task: str = 'bbox3d',
    ) -> None:
        """Keep the engines.

        Args:
            reference: the unpatched PyTorch model.
            candidates: 'free' and/or 'teacher' -> an engine of its own.
            spec: of its outputs that are no state, those that the memory's spec needs are compared, and those
                that both give.
            memory: what the family says of it.
            bars: what passes.
            task: whose results are matched.
        """
        if unknown := [mode for mode in candidates if mode not in MODES]:
            raise ValueError(f'mode {unknown[0]!r}: expected one of {", ".join(MODES)}')
        match = task_module(task).match_detections
        self.reference, self.candidates, self.clock = reference, candidates, Clock()
        self.runs = {mode: PairRun(mode, spec, bars or Bars(), memory, match) for mode in candidates}
        for stepper in (reference, *candidates.values()):
            stepper.reset()
        self.before: StreamState | None = None
        self.first: tuple[Frame, StepResult | None] | None = None

    def add(self, frame: Frame) -> tuple[StepResult, dict[str, StepResult]]:
        """Run one frame on all sides; return what the reference gave, and the candidates by mode."""
        expected = self.clock.run('reference', lambda: self.reference.step(frame))
        results: dict[str, StepResult] = {}
        after = snapshot(self.reference.state)
        for mode, candidate in self.candidates.items():
            if self.runs[mode].stopped:
                continue
            if mode == 'teacher':
                candidate.state = snapshot(self.before)
            got = self._step(mode, frame)
            if got is not None:
                self.runs[mode].add(Moment(frame, expected, got, after, candidate.state))
                results[mode] = got
                if self.runs[mode].takes_over():
                    candidate.state = snapshot(after)
        self.first = self.first or (frame, results.get('teacher'))
        self.before = after
        return expected, results

    def finish(self) -> dict[str, SequenceRow]:
        """Return mode -> what was found."""
        if self.first is not None and self.first[1] is not None and not self.runs['teacher'].stopped:
            self._run_again(*self.first)
        return {mode: run.finish() for mode, run in self.runs.items()}

    def _step(self, mode: str, frame: Frame) -> StepResult | None:
        """Run one frame; an engine that fails is a reason, not an exception."""
        found = attempt(lambda: self.clock.run(mode, lambda: self.candidates[mode].step(frame)))
        if not isinstance(found, Exception):
            return found
        self.runs[mode].stopped = f'{frame.name}: the candidate failed: {one_line(found)[:200]}'
        return None

    def _run_again(self, frame: Frame, known: StepResult) -> None:
        """Run the first frame again after the last: other bits have to be within the tolerances."""
        run, least = self.runs['teacher'], self.runs['teacher'].bars.cosine
        self.candidates['teacher'].reset()
        second = self._step('teacher', frame)
        if second is None or same_bits(known.outputs, second.outputs):
            return
        compared = tuple(tensor for tensor in run.outputs if tensor.name in known.outputs)
        sides = ({one.name: side.outputs[one.name] for one in compared} for side in (known, second))
        for row in compare_tensors(*sides, GraphSpec('', (), compared)):
            near = least is not None and row.cosine is not None and row.cosine >= least
            if not row.passed and not near:
                run.faults[f'a second run of the same frame gives another {row.tensor}'].append(frame.name)


def snapshot(state: StreamState | None) -> StreamState | None:
    """Return a copy of a memory that no engine's buffers can change."""
    if state is None:
        return None
    return dataclasses.replace(state, tensors={name: np.array(one) for name, one in state.tensors.items()})
