"""Levels 2 and 3 of LiDAR models without a memory: one sweep after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.compare.tensors import compare_tensors
from mmdeploy_ext.proof import half
from mmdeploy_ext.proof.levels.frames import FramesProof
from mmdeploy_ext.proof.levels.run_twice import nothing_found, run_twice
from mmdeploy_ext.proof.results import Case, Pair
from mmdeploy_ext.proof.tasks import task_module

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.frames import StepResult, Sweep


class SweepProof(FramesProof):
    """A proof on sweeps, none of which was traced: the exporter sees random numbers."""

    unit = found_in = 'sweep'
    advice = (
        'use sweeps with objects that this model finds, more of them (--frames), and a trained checkpoint'
    )

    def cases(self, one: Sweep) -> tuple[list[Case], list[Pair]]:
        """See `Proof.cases`."""
        expected = self.clock.run(self.who[0], lambda: self.reference.step(one))

        def judge(found: StepResult | Exception) -> tuple[Case, list[Pair]]:
            return self.judge(one, expected, found)

        def run() -> StepResult:
            return self.clock.run(self.who[1], lambda: self.runner.step(one))

        return run_twice(run, judge, lambda found: found.outputs)

    def judge(
        self, sweep: Sweep, expected: StepResult, found: StepResult | Exception
    ) -> tuple[Case, list[Pair]]:
        """Compare tensors and detections of one sweep; an engine that fails is a failed case."""
        shape, task = 'x'.join(map(str, sweep.points.shape)), self.deployment.family.task
        if isinstance(found, Exception):
            row = nothing_found(sweep.name, expected.detections, found)
            return Case(sweep.name, shape, False, (), (row,)), []
        rows, bars = compare_tensors(expected.outputs, found.outputs, self.spec), {}
        if low := half.bars_of(self.verdict.precision):
            rows, bars = half.judge(rows, low.cosine), low.of_task(task)
        match = task_module(task).match_detections
        detections = match('boxes', expected.detections, found.detections, **bars)
        title = f'{sweep.name or "sweep"}, {len(sweep.points)} points'
        pair = Pair(title, sweep.points, expected.detections, found.detections)
        return Case(sweep.name, shape, False, tuple(rows), (detections,)), [pair]
