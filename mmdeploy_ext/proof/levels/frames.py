"""Proofs of models of several graphs: what they share, and levels 2 and 3 of models without a memory."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.compare.tensors import compare_tensors
from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.proof import fresh, half
from mmdeploy_ext.proof.levels.exported import ExportedFile, ExportedProof
from mmdeploy_ext.proof.levels.run_twice import Clock, attempt, nothing_found, run_twice
from mmdeploy_ext.proof.near_ties import with_moved_thresholds, with_other_rounding
from mmdeploy_ext.proof.provenance import companion_checks
from mmdeploy_ext.proof.results import Case, Pair
from mmdeploy_ext.proof.tasks import bbox3d, task_module

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator, Sequence

    from mmdeploy_ext.compare.rows import TensorRow
    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.option import Options
    from mmdeploy_ext.contract.spec import TensorSpec
    from mmdeploy_ext.contract.stages import Graph
    from mmdeploy_ext.proof.results import Check, DetectionRow
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Stepper, StepResult, Sweep


class FramesProof(ExportedProof):
    """A proof of the files of one export.

    Attributes:
        asked_for: options of the export.
    """

    unit = 'frame'

    def read(self, path: str) -> ExportedFile:
        """See `Proof.read`."""
        file = super().read(path)
        return ExportedFile(path, file.model, file.metadata, file.metadata.form)

    def facts(self) -> dict[str, Any]:
        """See `Proof.facts`."""
        from mmdeploy_ext.engines import title_of

        options = self.files[-1].options
        return dict(
            files={Path(path).name: sha256_file(path)[:16] for path in self.paths},
            contract=options.get('contract', ''),
            precision=precision_of_all(self.metadata),
            engine=title_of(self.kind),
            **super().facts(),
        )

    @functools.cached_property
    def asked_for(self) -> Options:
        """What all files say that they were exported with."""
        first = self.files[0]
        for file in self.files:
            if file.options != first.options:
                raise ModelFileError(
                    f'{file.path}: is of another export than {first.path} (options differ); export again'
                )
        options = self.deployment.family.written(first.options, first.path)
        with fresh.options_of(first.path):
            options.check()
        return options

    @functools.cached_property
    def graphs(self) -> dict[str, Graph]:
        """The graphs of the model with these options, by name."""
        asked = fresh.exported_with(self.asked_for, self.metadata[0])
        return {graph.name: graph for graph in self.deployment.family.graphs(self.deployment.model, asked)}

    def expected(self, file: ExportedFile) -> tuple[fresh.Reference, Any, GraphSpec | None]:
        """See `ExportedProof.expected`."""
        graph = self.graphs.get(file.name)
        reference = fresh.of_graph(self.deployment, self.asked_for, file.metadata, graph)
        return reference, self.deployment.rule, graph.spec if graph else None

    def checks(self, file: ExportedFile) -> list[Check]:
        """See `Proof.checks`; with the last file those of the texts beside the graphs."""
        if file is not self.files[-1]:
            return super().checks(file)
        wanted = self.deployment.family.companions(self.deployment.model, self.asked_for)
        return [*super().checks(file), *companion_checks(Path(file.path).parent, wanted)]

    def start(self, stack: contextlib.ExitStack) -> None:
        """See `Proof.start`."""
        family, more = (
            self.deployment.family,
            self.deployment.family.between_files(self.deployment.model, self.asked_for),
        )
        self.spec, self.clock = output_spec(self.metadata, more), Clock()
        self.who = f'PyTorch ({self.unit})', f'{self.verdict.subject["engine"]} ({self.unit})'
        self.reference: Stepper = family.reference_of(self.deployment.model, self.asked_for)
        self.runner = self.open_runner(stack)

    def open_runner(self, stack: contextlib.ExitStack) -> Stepper:
        """Return the files on the engine; its sessions, if it has any, are closed with the stack."""
        runner = self.deployment.family.runner(self.paths, self.engine)
        owner = getattr(runner, 'runtime', runner)
        if hasattr(owner, 'close'):
            stack.callback(owner.close)
        return runner

    def timing(self) -> dict[str, float]:
        """See `Proof.timing`."""
        return self.clock.medians(*self.who)


class SweepProof(FramesProof):
    """A proof on sweeps, none of which was traced: the exporter sees random numbers."""

    unit = found_in = 'sweep'
    first: Sweep | None = None
    """Sample, whose cameras a crowded sweep is seen by."""
    most: tuple[Sweep, Detections3D] | None = None
    """Sample with the most results so far, and those of the reference."""
    advice = (
        'use sweeps with objects that this model finds, more of them (--frames), and a trained checkpoint'
    )

    def cases(self, one: Sweep) -> tuple[list[Case], list[Pair]]:
        """See `Proof.cases`."""
        expected = self.clock.run(self.who[0], lambda: self.reference.step(one))
        self.first = self.first or one

        def judge(found: StepResult | Exception) -> tuple[Case, list[Pair]]:
            return self.judge(one, expected, found)

        def run() -> StepResult:
            return self.clock.run(self.who[1], lambda: self.runner.step(one))

        return run_twice(run, judge, lambda found: found.outputs)

    def judge(
        self, sweep: Sweep, expected: StepResult, found: StepResult | Exception
    ) -> tuple[Case, list[Pair]]:
        """Compare tensors and detections of one sweep; an engine that fails is a failed case."""
        if isinstance(found, Exception):
            return self._failed(sweep, expected, found), []
        row = self.match('boxes', sweep, expected, found)
        title = f'{sweep.name or "sweep"}, {len(sweep.points)} points'
        rule = self.deployment.rule
        pair = bbox3d.pair_of(sweep, rule, title, expected.detections, found.detections)
        if not self.most or len(expected.detections) > len(self.most[1]):
            self.most = sweep, expected.detections
        return Case(sweep.name, shape_of(sweep), False, self.tensors(expected, found), (row,)), [pair]

    def _failed(self, sweep: Sweep, expected: StepResult, found: Exception) -> Case:
        row = nothing_found(sweep.name, expected.detections, found)
        return Case(sweep.name, shape_of(sweep), False, (), (row,))

    def tensors(self, expected: StepResult, found: StepResult) -> tuple[TensorRow, ...]:
        """Return level 2 of one sweep."""
        rows, low = compare_tensors(expected.outputs, found.outputs, self.spec), self.low
        return tuple(half.judge(rows, low.cosine) if low else rows)

    def match(self, name: str, sweep: Sweep, expected: StepResult, found: StepResult) -> DetectionRow:
        """Return level 3 of one sweep."""
        task = self.deployment.family.task
        bars = self.low.of_task(task) if self.low else {}
        sides = expected.detections, found.detections
        ties = functools.partial(self.near_ties, sweep)
        return task_module(task).match_detections(name, *sides, near_ties=ties, **bars)

    @property
    def low(self) -> half.HalfBars | None:
        """Bars of half precision or INT8; None for float32."""
        return half.bars_of(self.verdict.precision)

    def conclude(self) -> None:
        """See `Proof.conclude`; then both engines are brought to limits that samples do not reach."""
        super().conclude()
        self.verdict.cases += self.at_limits()

    def at_limits(self) -> Iterator[Case]:
        """Yield tensors of crowded sweeps, and the results of a sample of which a lower limit drops some.

        What a crowded sweep shows is like nothing that a model was trained on: its results may all be alike.
        """
        family = self.deployment.family
        for crowd in family.crowded_sweeps(self.deployment.rule, self.asked_for):
            sweep = dataclasses.replace(self.first or crowd, points=crowd.points, name=crowd.name)
            expected, found = self.reference.step(sweep), attempt(functools.partial(self.runner.step, sweep))
            if isinstance(found, Exception):
                yield self._failed(sweep, expected, found)
            else:
                yield Case(sweep.name, shape_of(sweep), False, self.tensors(expected, found))
        if not self.most or self.low:  # which results are left depends on their order
            return
        chosen, seen = self.most
        with family.with_limit(self.deployment.model, self.runner, seen) as limit:
            if limit:
                found = attempt(functools.partial(self.runner.step, chosen))
                named = dataclasses.replace(chosen, name=f'{chosen.name or "sweep"}, at most {limit} results')
                yield self.judge(named, self.reference.step(chosen), found)[0]

    def near_ties(self, sweep: Sweep) -> Iterator[Detections3D]:
        """Return PyTorch's results with thresholds moved by rounding, and with other rounding of layers."""
        model = self.deployment.model

        def run() -> list[Detections3D]:
            return [self.reference.step(sweep).detections]

        runs = itertools.chain(with_moved_thresholds(model, run), with_other_rounding(model, run))
        return (detections for (detections,) in runs)


def shape_of(sweep: Sweep) -> str:
    """Return the shape of a sweep's points, for a case."""
    return 'x'.join(map(str, sweep.points.shape))


def output_spec(metadata: Sequence[Metadata], between: Sequence[TensorSpec] = ()) -> GraphSpec:
    """Return the outputs of all files of an export together, and which of them are state.

    Args:
        metadata: of the files.
        between: what the runner computes between them.
    """
    specs = [entry.spec for entry in metadata]
    outputs = {tensor.name: tensor for spec in specs for tensor in spec.outputs}
    outputs |= {tensor.name: tensor for tensor in between}
    state = tuple(pair for spec in specs for pair in spec.state)
    return GraphSpec(' + '.join(spec.name for spec in specs), (), tuple(outputs.values()), state)


def precision_of_all(metadata: Sequence[Metadata]) -> str:
    """Return what an export is judged as: one file in less than float32 decides for all."""
    return next((found for entry in metadata if (found := half.precision_of(entry)) != 'fp32'), 'fp32')
