"""Proofs of models of frames or sweeps: what they share, and levels 2 and 3 of models without a memory.

Level 2 compares tensors, level 3 results. A stepper is a model on an engine that runs one sample at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import least_precision
from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.engines import title_of
from mmdeploy_ext.proving import file_checks, half_bars
from mmdeploy_ext.proving.levels.attempts import Clock, attempt, failed_detections
from mmdeploy_ext.proving.levels.exported_file import (
    ExportedFile,
    check_file,
    engine_options,
    notes_on_export,
    open_file,
)
from mmdeploy_ext.proving.levels.proof import Proof
from mmdeploy_ext.proving.open_points import count_voxels
from mmdeploy_ext.proving.preprocessing.moments import compare_prepared
from mmdeploy_ext.proving.preprocessing.voxels import compare_voxels
from mmdeploy_ext.proving.provenance import companion_checks
from mmdeploy_ext.proving.results import Case, Check, DetectionRow, Pair
from mmdeploy_ext.proving.substitution import choices_among, without_limits
from mmdeploy_ext.proving.tasks import bbox3d, task_module
from mmdeploy_ext.proving.tensors import compare_tensors

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.contract.spec import Graph, TensorSpec
    from mmdeploy_ext.proving.results import GraphResult, PreprocessingResult
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Stepper, StepResult, Sweep


MAX_EXCESS = 0.3
"""By how much the best score may exceed PyTorch's for a sweep without anything in it.

A TransFusion with random weights chooses other cells of equal score there, which then get other scores.
"""


class FramesProof(Proof):
    """A proof of the files of one export of a model of frames or sweeps; `Proof` describes the methods.

    Attributes:
        spec: outputs and state of all files together.
        reference: PyTorch's side, frame by frame.
        runner: the files on their engine, frame by frame.
        clock: seconds of both sides, by the names in `engine_titles`; unused by `DriveProof`,
            the proof of models with a memory.
        engine_titles: title of PyTorch, and of the engine, in the table of times.
    """

    unit, samples_option = 'frame', '--frames'

    def __init__(self, *arguments: Any) -> None:
        """Read the files as `Proof` does; for float16 files the engine gets the options of `proof_engine`."""
        super().__init__(*arguments)
        self.engine = engine_options(self.files, self.kind, self.engine)

    @property
    def metadata(self) -> list[Metadata]:
        """The metadata of every file."""
        return [file.metadata for file in self.files]

    def read(self, path: str) -> ExportedFile:
        file = open_file(path)
        file.metadata.require(path, self.deployment.family.name)
        return dataclasses.replace(file, name=file.metadata.form)

    def facts(self) -> dict[str, Any]:
        """Return `files`, `contract`, `precision`, `engine` and the facts of the export for the verdict.

        `files` is name -> the first 16 digits of its SHA-256.
        """
        return dict(
            files={Path(path).name: sha256_file(path)[:16] for path in self.paths},
            contract=self.files[-1].options.get('contract', ''),
            precision=least_precision(self.metadata),
            engine=title_of(self.kind),
            **self.files[-1].facts,
        )

    @functools.cached_property
    def export_options(self) -> Options:
        """The options that all files record, see `ExportedFile.options`.

        ModelFileError: they differ between the files, or fit no export.
        """
        first = self.files[0]
        for file in self.files:
            if file.options != first.options:
                raise ModelFileError(
                    f'{file.path}: is of another export than {first.path} (options differ); export again'
                )
        options = self.deployment.family.exported_options(first.options, first.path)
        with file_checks.option_errors(first.path):
            options.check()
        return options

    @functools.cached_property
    def graphs(self) -> dict[str, Graph]:
        """Name -> graph of the model, with the options of the export itself.

        A conversion to float16 after the export, which files record, is not in them.
        """
        graphs = self.deployment.family.graphs(self.deployment.model, self.export_options)
        return {graph.name: graph for graph in graphs}

    def graph(self, file: ExportedFile) -> GraphResult:
        export = file_checks.of_graph(self.deployment, self.export_options, file.name)
        return file_checks.compare_with_fresh_export(file.model, export, file.name)

    def checks(self, file: ExportedFile) -> list[Check]:
        """Return the checks of a file; with the last file also those of the text files beside the graphs."""
        graph = self.graphs.get(file.name)
        checks, notes = check_file(self.deployment, file, self.deployment.rule, graph.spec if graph else None)
        self.add_notes(notes)
        return [*checks, *self.companion_checks(file)] if file is self.files[-1] else checks

    def companion_checks(self, file: ExportedFile) -> list[Check]:
        """Return the checks of the text files in the folder of a file."""
        folder, family = Path(file.path).parent, self.deployment.family
        companions = companion_checks(folder, family.companions(self.deployment.model, self.export_options))
        checks = list(companions)
        if companions and all(check.passed for check in companions):
            differences = family.companion_differences(folder, self.deployment.cfg)
            if differences:
                checks.append(
                    Check('texts beside the graphs as in the config', False, '; '.join(differences))
                )
        return checks

    def preprocessing(self) -> PreprocessingResult:
        """Compare frames prepared by the rule in the last file with those of the config's test pipeline.

        They are generated, and up to two are those of a data set that the proof runs on. The voxels of the
        rule are compared with those of the model's own layer, if it has one.
        """
        rule = self.metadata[-1].preprocess
        result = compare_prepared(self.deployment, rule, self.samples, self.unit)
        layer = self.deployment.family.voxel_layer(self.deployment.model)
        if layer is None or result.error:
            return result
        voxels = compare_voxels(*layer, getattr(rule, 'voxels', rule).to_json())
        differences = *result.differences, *voxels.differences
        return dataclasses.replace(result, differences=differences, error=voxels.error)

    def start(self, stack: contextlib.ExitStack) -> None:
        """Open PyTorch's side and the files on the engine; a ModelFileError names graphs without a file."""
        names = {file.name for file in self.files}
        if absent := [f'{name}.onnx' for name in self.graphs if name not in names]:
            raise ModelFileError(
                f'{Path(self.paths[0]).parent}: has no {", ".join(absent)}; the files of one export belong '
                f'together: export it again'
            )
        family, model = self.deployment.family, self.deployment.model
        self.spec = output_spec(self.metadata, family.runner_output_specs(model, self.export_options))
        self.clock = Clock()
        self.engine_titles = f'PyTorch ({self.unit})', f'{self.verdict.subject["engine"]} ({self.unit})'
        self.reference: Stepper = family.reference_of(model, self.export_options)
        self.runner = self.open_runner(stack)

    def open_runner(self, stack: contextlib.ExitStack) -> Stepper:
        """Return a stepper that runs the files on the engine, whose sessions are closed with the stack."""
        runner = self.deployment.family.runner(self.paths, self.engine)
        owner = getattr(runner, 'runtime', runner)
        if hasattr(owner, 'close'):
            stack.callback(owner.close)
        return runner

    def limits(self) -> dict[str, Any]:
        rule = self.metadata[-1].preprocess
        voxels = getattr(rule, 'voxels', rule)
        return {**self.metadata[-1].postprocess, 'max_voxels': getattr(voxels, 'max_voxels', -1)}

    def counts_of(self, results: int, sweep: Sweep | None = None) -> dict[str, int]:
        """Return name of a limit -> how many a sample has: results, and voxels of a sweep.

        Of a head with `post_max_size`, which holds for each of its tasks, the results of all tasks count.
        """
        limits = self.limits()
        counts = {'post_max_size' if 'post_max_size' in limits else 'max_num': results}
        if sweep is not None and limits['max_voxels'] > 0:
            rule = self.metadata[-1].preprocess
            counts['max_voxels'] = count_voxels(sweep.points, getattr(rule, 'voxels', rule))
        return counts

    def timing(self) -> dict[str, float]:
        return self.clock.medians(*self.engine_titles)

    def notes(self) -> list[str]:
        """Return the notes on the files, and those of the reference."""
        notes = notes_on_export(self.deployment, self.metadata[-1])
        return [*notes, *getattr(self.reference, 'notes', ())]


class SweepProof(FramesProof):
    """A proof on sweeps, or on `FusedFrame`s, which have prepared pictures of cameras, too.

    None of them was traced: the exporter sees random numbers. `Proof` and `FramesProof` describe the methods.

    Attributes:
        first: the first sample, whose camera pictures are used with crowded sweeps, too.
    """

    unit = found_in = 'sweep'
    first: Sweep | None = None
    advice = (
        'use sweeps with objects that this model finds, more of them (--frames), and a trained checkpoint'
    )

    def cases(self, sample: Sweep) -> tuple[list[Case], list[Pair]]:
        """Run both sides on one sweep; return its case, and what the report draws of it."""
        run = functools.partial(
            self.clock.run, self.engine_titles[1], functools.partial(self.runner.step, sample)
        )
        expected = self.clock.run(self.engine_titles[0], lambda: self.reference.step(sample))
        self.first = self.first or sample
        case, pairs = self.judge(sample, expected, attempt(run))
        return [case], pairs

    def run_both(self, sweep: Sweep) -> tuple[StepResult, StepResult | Exception]:
        """Return the result of the reference, and that of the files or the exception that they raised."""
        return self.reference.step(sweep), attempt(functools.partial(self.runner.step, sweep))

    def judge(
        self, sweep: Sweep, expected: StepResult, result: StepResult | Exception
    ) -> tuple[Case, list[Pair]]:
        """Return levels 2 and 3 of one sweep, and its picture, or [] if the engine failed.

        Args:
            sweep: the input.
            expected: result of PyTorch.
            result: result of the files, or the exception that they raised.
        """
        case = self.judge_tensors(sweep, expected, result)
        if isinstance(result, Exception):
            return case, []
        sides = expected.detections, result.detections
        task = self.deployment.family.task
        settings = self.bars.of_task(task) if self.bars else {}
        row = task_module(task).match_detections('boxes', *sides, **settings)
        case = dataclasses.replace(case, detections=(row,), substituted=self.substituted(result))
        title = f'{sweep.name or "sweep"}, {len(sweep.points)} points'
        pair = bbox3d.pair_of(sweep, self.deployment.rule, title, *sides)
        return case, [pair]

    def substituted(self, result: StepResult) -> tuple[DetectionRow, ...]:
        """Match the file's boxes with those that the user's head makes of its outputs; () below float32."""
        if self.bars or not hasattr(self.reference, 'boxes_of'):
            return ()
        sides = self.reference.boxes_of(result.outputs), result.detections
        task = task_module(self.deployment.family.task)

        def run_without_limits() -> Any:
            with without_limits(self.deployment.model):
                return self.reference.boxes_of(result.outputs)

        settings = getattr(task, 'ONE_TO_ONE', {})
        tied = choices_among(*sides, run_without_limits)
        return (task.match_detections('boxes', *sides, tied=tied, **settings),)

    def judge_tensors(self, sweep: Sweep, expected: StepResult, result: StepResult | Exception) -> Case:
        """Return level 2 of one sweep, by the results of PyTorch and of the files, see `judge`.

        A `result` that is an exception makes a failed case.
        """
        counts = self.counts_of(len(expected.detections), sweep)
        case = Case(sweep.name, 'x'.join(map(str, sweep.points.shape)), False, counts=counts)
        if isinstance(result, Exception):
            row = failed_detections(sweep.name, expected.detections, result)
            return dataclasses.replace(case, detections=(row,))
        rows = compare_tensors(expected.outputs, result.outputs, self.spec)
        return dataclasses.replace(case, tensors=tuple(self.bars.judge(rows) if self.bars else rows))

    @property
    def bars(self) -> half_bars.HalfBars | None:
        """Bars of half precision or INT8; None for float32."""
        return half_bars.bars_of(self.verdict.precision)

    def conclude(self) -> None:
        """Judge all cases; then add those of unusual sweeps, which are judged singly."""
        super().conclude()
        self.results.cases += self.unusual_sweeps()

    def unusual_sweeps(self) -> Iterator[Case]:
        """Yield cases of crowded, special and plain sweeps.

        Only the tensors of crowded sweeps are compared: they are unlike anything that a model was trained on,
        so that all results may have the same score.
        """
        family, rule = self.deployment.family, self.deployment.rule
        for crowd in family.crowded_sweeps(rule, self.export_options):
            sweep = dataclasses.replace(self.first or crowd, points=crowd.points, name=crowd.name)
            yield self.judge_tensors(sweep, *self.run_both(sweep))
        if self.first is not None:
            for special in family.special_samples(rule, self.first):
                yield self.judge(special, *self.run_both(special))[0]
            yield from self.nothing_to_see(family.plain_sample(rule, self.first))

    def nothing_to_see(self, plain: Sweep | None) -> Iterator[Case]:
        """Yield the case of a plain sample: its tensors, and its results if the reference finds nothing.

        A score below `bbox3d.SCORE_THR` is nothing. If the reference finds something, only the best score
        of the results is compared: cells without anything in them have equal scores, and rounding
        decides which of them a model chooses. For the same reason the boxes that the user's head makes of the
        file's outputs are not matched. There is no case if `plain` is None, as of a family that has no
        such sample.
        """
        if plain is None:
            return
        expected, result = self.run_both(plain)
        if len(expected.detections.above(bbox3d.SCORE_THR)):
            case = self.judge_tensors(plain, expected, result)
            if not isinstance(result, Exception):
                row = best_scores_row(expected.detections, result.detections)
                case = dataclasses.replace(case, detections=(row,))
            yield case
        else:
            yield dataclasses.replace(self.judge(plain, expected, result)[0], substituted=())


def best_scores_row(expected: Detections3D, detections: Detections3D) -> DetectionRow:
    """Return the row of results of which only the best score is compared, see `MAX_EXCESS`.

    `expected` are PyTorch's results, one or more, `detections` those of the files, which may be none.
    """
    excess = float(detections.scores.max(initial=0.0)) - float(expected.scores.max())
    reason = '' if excess <= MAX_EXCESS else f'the best score is {excess:.3g} higher than that of the model'
    return DetectionRow('best score', 0, 0, 0, 0, 1.0, max(excess, 0.0), not reason, reason)


def output_spec(metadata: Sequence[Metadata], between: Sequence[TensorSpec] = ()) -> GraphSpec:
    """Return one spec with the outputs and the state of all files of an export.

    Args:
        metadata: metadata of each file.
        between: specs of further outputs, which the runner computes between the files.
    """
    specs = [entry.spec for entry in metadata]
    outputs = {tensor.name: tensor for spec in specs for tensor in spec.outputs}
    outputs |= {tensor.name: tensor for tensor in between}
    state = tuple(pair for spec in specs for pair in spec.state)
    return GraphSpec(' + '.join(spec.name for spec in specs), (), tuple(outputs.values()), state)
