"""Proofs of models of several graphs: what they share, and levels 2 and 3 of models without a memory."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.proving import fresh, half
from mmdeploy_ext.proving.levels.exported import ExportedFile, ExportedProof
from mmdeploy_ext.proving.levels.run_twice import Clock, attempt, nothing_found, run_twice
from mmdeploy_ext.proving.levels.synthetic import cases_of_family, judge_all
from mmdeploy_ext.proving.levels.voxels import compare_voxels
from mmdeploy_ext.proving.moments import compare_moments
from mmdeploy_ext.proving.near_ties import near_ties
from mmdeploy_ext.proving.provenance import companion_checks
from mmdeploy_ext.proving.results import Case, Check, DetectionRow, Pair
from mmdeploy_ext.proving.tasks import bbox3d, task_module
from mmdeploy_ext.proving.tensors import compare_tensors

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.contract.spec import TensorSpec
    from mmdeploy_ext.contract.stages import Graph
    from mmdeploy_ext.proving.results import PreprocessingResult
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Stepper, StepResult, Sweep


HIGHER = 0.3
"""Of a best score, where there is nothing to see: a seeded TransFusion gives other ones for other cells."""


class FramesProof(ExportedProof):
    """A proof of the files of one export.

    Attributes:
        asked_for: options of the export.
    """

    unit = 'frame'

    def read(self, path: str) -> ExportedFile:
        file = super().read(path)
        return ExportedFile(path, file.model, file.metadata, file.metadata.form)

    def facts(self) -> dict[str, Any]:
        from mmdeploy_ext.engines import title_of

        options = self.files[-1].options
        return dict(
            files={Path(path).name: sha256_file(path)[:16] for path in self.paths},
            contract=options.get('contract', ''),
            precision=next((one.precision for one in self.metadata if one.precision != 'fp32'), 'fp32'),
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
        graph = self.graphs.get(file.name)
        reference = fresh.of_graph(self.deployment, self.asked_for, file.metadata, graph)
        contract = fresh.contract_after(graph.spec, file.metadata) if graph else None
        return reference, self.deployment.rule, contract

    def checks(self, file: ExportedFile) -> list[Check]:
        """See `Proof.checks`; with the last file those of the texts beside the graphs."""
        if file is not self.files[-1]:
            return super().checks(file)
        wanted = self.deployment.family.companions(self.deployment.model, self.asked_for)
        folder, family = Path(file.path).parent, self.deployment.family
        companions = companion_checks(folder, wanted)
        checks = [*super().checks(file), *companions]
        written_right = companions and all(check.passed for check in companions)
        wrong = family.companion_differences(folder, self.deployment.cfg) if written_right else []
        if wrong:
            checks.append(Check('texts beside the graphs as in the config', False, '; '.join(wrong)))
        return checks

    def preprocessing(self) -> PreprocessingResult:
        """Compare moments prepared by the rule in the last file with those of the config's test pipeline.

        The voxels of its rule are compared with those of the model's own layer.
        """
        rule = self.metadata[-1].preprocess
        result = compare_moments(self.deployment, rule, self.samples, self.unit)
        layer = self.deployment.family.voxel_layer(self.deployment.model)
        if layer is None or result.error:
            return result
        voxels = compare_voxels(*layer, getattr(rule, 'voxels', rule).to_json())
        differences = *result.differences, *voxels.differences
        return dataclasses.replace(result, differences=differences, error=voxels.error)

    def start(self, stack: contextlib.ExitStack) -> None:
        written = {file.name for file in self.files}
        if absent := [f'{name}.onnx' for name in self.graphs if name not in written]:
            raise ModelFileError(
                f'{Path(self.paths[0]).parent}: has no {", ".join(absent)}; the files of one export belong '
                f'together: export it again'
            )
        family, given = self.deployment.family, (self.deployment.model, self.asked_for)
        self.spec, self.clock = output_spec(self.metadata, family.between_files(*given)), Clock()
        self.who = f'PyTorch ({self.unit})', f'{self.verdict.subject["engine"]} ({self.unit})'
        self.reference: Stepper = family.reference_of(*given)
        self.runner = self.open_runner(stack)

    def open_runner(self, stack: contextlib.ExitStack) -> Stepper:
        """Return the files on the engine; its sessions, if it has any, are closed with the stack."""
        runner = self.deployment.family.runner(self.paths, self.engine)
        owner = getattr(runner, 'runtime', runner)
        if hasattr(owner, 'close'):
            stack.callback(owner.close)
        return runner

    def timing(self) -> dict[str, float]:
        return self.clock.medians(*self.who)

    def notes(self) -> list[str]:
        """Return what the reference says of itself."""
        return [*super().notes(), *getattr(self.reference, 'notes', ())]


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
        run = functools.partial(self.clock.run, self.who[1], functools.partial(self.runner.step, one))
        expected = self.clock.run(self.who[0], lambda: self.reference.step(one))
        self.first = self.first or one
        return run_twice(run, functools.partial(self.judge, one, expected), lambda found: found.outputs)

    def judge(
        self, sweep: Sweep, expected: StepResult, found: StepResult | Exception
    ) -> tuple[Case, list[Pair]]:
        """Return levels 2 and 3 of one sweep, and its picture."""
        case = self.judge_tensors(sweep, expected, found)
        if isinstance(found, Exception):
            return case, []
        sides, model = (expected.detections, found.detections), self.deployment.model
        ties = functools.partial(near_ties, model, lambda: self.reference.step(sweep).detections)
        if hasattr(self.reference, 'near_ties'):  # of a model in another process
            ties = functools.partial(self.reference.near_ties, sweep)
        task = self.deployment.family.task
        settings = self.low.of_task(task) if self.low else {}
        row = task_module(task).match_detections('boxes', *sides, near_ties=ties, **settings)
        title = f'{sweep.name or "sweep"}, {len(sweep.points)} points'
        if not self.most or len(expected.detections) > len(self.most[1]):
            self.most = sweep, expected.detections
        pair = bbox3d.pair_of(sweep, self.deployment.rule, title, *sides)
        return dataclasses.replace(case, detections=(row,)), [pair]

    def judge_tensors(self, sweep: Sweep, expected: StepResult, found: StepResult | Exception) -> Case:
        """Return level 2 of one sweep; an engine that fails is a failed case."""
        case = Case(sweep.name, 'x'.join(map(str, sweep.points.shape)), False)
        if isinstance(found, Exception):
            row = nothing_found(sweep.name, expected.detections, found)
            return dataclasses.replace(case, detections=(row,))
        rows = compare_tensors(expected.outputs, found.outputs, self.spec)
        return dataclasses.replace(case, tensors=tuple(self.low.judge(rows) if self.low else rows))

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
            yield self.judge_tensors(sweep, expected, found)
        if self.first is not None:
            for special in family.special_samples(self.deployment.rule, self.first):
                found = attempt(functools.partial(self.runner.step, special))
                yield self.judge(special, self.reference.step(special), found)[0]
            yield from self.nothing_to_see(family.plain_sample(self.deployment.rule, self.first))
        if not self.low:
            given = self.deployment.model, self.reference, self.runner, self.metadata[-1].spec
            yield from cases_of_family(family, *given)
            yield from self.other_heads()
        if not self.most or self.low:  # which results are left depends on their order
            return
        chosen, seen = self.most
        with family.with_limit(self.deployment.model, self.runner, seen) as limit:
            if limit:
                found = attempt(functools.partial(self.runner.step, chosen))
                named = dataclasses.replace(chosen, name=f'{chosen.name or "sweep"}, at most {limit} results')
                yield self.judge(named, self.reference.step(chosen), found)[0]

    def other_heads(self) -> Iterator[Case]:
        """Yield results of the head with other limits in its graph."""
        if self.first is None:
            return
        options = fresh.exported_with(self.asked_for, self.metadata[0])
        given = self.deployment.model, options, self.reference, self.first
        for title, expected, found in self.deployment.family.heads_with_other_limits(*given):
            yield Case(title, '', False, detections=(judge_all(expected, found),))

    def nothing_to_see(self, plain: Sweep | None) -> Iterator[Case]:
        """Yield the tensors of a plain sample, and its results where the reference finds nothing.

        Cells without anything in them score the same: rounding decides which of them a model names, and what
        queries of these places then score, so that of results only the best score is looked at.
        """
        if plain is None:
            return
        expected, found = self.reference.step(plain), attempt(functools.partial(self.runner.step, plain))
        if len(expected.detections.above(bbox3d.SCORE_THR)):
            case = self.judge_tensors(plain, expected, found)
            if not isinstance(found, Exception):
                row = best_scores_row(expected.detections, found.detections)
                case = dataclasses.replace(case, detections=(row,))
            yield case
        else:
            yield self.judge(plain, expected, found)[0]


def best_scores_row(expected: Detections3D, found: Detections3D) -> DetectionRow:
    """Return the row of results of which only the best score is compared, and may not be much higher."""
    excess = float(found.scores.max(initial=0.0)) - float(expected.scores.max())
    reason = '' if excess <= HIGHER else f'the best score is {excess:.3g} higher than that of the model'
    return DetectionRow('best score', 0, 0, 0, 0, 1.0, max(excess, 0.0), not reason, reason)


def output_spec(metadata: Sequence[Metadata], between: Sequence[TensorSpec] = ()) -> GraphSpec:
    """Return the outputs of all files of an export, and of the runner between them, and which are state."""
    specs = [entry.spec for entry in metadata]
    outputs = {tensor.name: tensor for spec in specs for tensor in spec.outputs}
    outputs |= {tensor.name: tensor for tensor in between}
    state = tuple(pair for spec in specs for pair in spec.state)
    return GraphSpec(' + '.join(spec.name for spec in specs), (), tuple(outputs.values()), state)
