"""The proof of sweep files, `prove_sweeps`, and parts shared with drives (`drive.py`)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import LoadError, ModelFileError
from mmdeploy_ext.base.files import sha256_onnx
from mmdeploy_ext.engines import title_of
from mmdeploy_ext.exporting.precision_plan import before_plan
from mmdeploy_ext.families.base import exported_options
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.proving import file_checks
from mmdeploy_ext.proving.drive_run import MAX_DRAWN
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.not_shown import Watch, count_voxels
from mmdeploy_ext.proving.preprocessing.moments import compare_prepared
from mmdeploy_ext.proving.preprocessing.voxels import compare_voxels
from mmdeploy_ext.proving.proof import (
    check,
    compare_samples,
    conclude,
    contents_of,
    engine_class,
    engine_options,
    judge_results,
    not_loaded,
    open_file,
)
from mmdeploy_ext.proving.provenance import companion_checks
from mmdeploy_ext.proving.recorded.calls import RecordedStepper
from mmdeploy_ext.proving.subject import Sample, Started, Step, Subject, Unread
from mmdeploy_ext.runtime.tasks import bbox3d
from mmdeploy_ext.spec.matching import total_reasons
from mmdeploy_ext.spec.metadata import least_precision
from mmdeploy_ext.spec.results import Bars, Case, DetectionRow, bars_of
from mmdeploy_ext.spec.tensors import GraphSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mmdeploy_ext.families.contracts import Contract
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.proof import ExportedFile, Proof
    from mmdeploy_ext.proving.subject import Claims
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Stepper, Sweep
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.results import Check, PreprocessingResult
    from mmdeploy_ext.spec.tensors import TensorSpec
    from mmdeploy_ext.spec.verdict import Verdict

ADVICE = 'use sweeps with objects that this model finds, more sweeps (--frames) and a trained checkpoint'
"""Advice for too few matched results of sweeps."""
MAX_EXCESS = 0.3
"""Allowed excess of the best score over PyTorch's on an empty sweep."""
NOT_PUT_IN = (
    "the files' outputs differ from the inputs of your head, which did not run on them: the end-to-end "
    'boxes decide'
)


@dataclasses.dataclass
class Sides:
    """PyTorch and the files of one export, sample by sample.

    Attributes:
        metadata: of the last file.
        reference: PyTorch's side.
        runner: the files on their engine.
        spec: outputs and state of all files.
        bars: of the files' lowest precision.
    """

    detector: Detector
    metadata: Metadata
    reference: Stepper
    runner: Stepper
    spec: GraphSpec
    bars: Bars


def prove_sweeps(
    detector: Detector,
    paths: Sequence[str],
    sweeps: Collection[Sweep],
    engine: Mapping[str, Any],
    claims: Claims,
) -> Verdict:
    """Prove files on sweeps, or on `FusedFrame`s with prepared images."""
    proof = check_frames(detector, paths, sweeps, engine, claims, 'sweep')
    results, verdict = proof.results, proof.verdict
    with contextlib.ExitStack() as stack:
        try:
            sides = open_sides(detector, proof.files, proof.options, proof.engine, stack)
        except LoadError as error:
            return not_loaded(proof, error)
        subject = Sweeps(sides, RecordedStepper(detector, sides.reference), sweeps)
        clock = compare_samples(proof, subject)
        judge_results(proof)
        if not results.reasons:
            results.reasons += total_reasons(results.cases, verdict.bars, 'sweep', 'sweep', ADVICE)
        proof.add_notes(dict.fromkeys(note for case in results.cases for note in case.notes))
        if subject.first is not None:
            results.cases += unusual_cases(sides, subject.first)
    subject.pairs = subject.pairs[:MAX_DRAWN]
    return conclude(proof, subject, subject.settings, '--frames', clock, 'sweep')


def check_frames(
    detector: Detector,
    paths: Sequence[str],
    samples: Collection[Any],
    engine: Mapping[str, Any],
    claims: Claims,
    unit: str = 'frame',
) -> Proof:
    """Read files of frames or sweeps, and do level 1."""
    files, options = read_files(detector, paths)
    kind, family = engine_class(engine), detector.family
    facts = dict(
        files={Path(path).name: sha256_onnx(path)[:16] for path in paths},
        contract=files[-1].options.get('contract', ''),
        precision=least_precision([file.metadata for file in files]),
        engine=title_of(kind),
        **files[-1].facts,
    )
    contract = contract_of(family, options)
    graphs = contract.graphs(detector.model, options)
    specs = {graph.name: graph.spec for graph in graphs}
    export_graph = file_checks.of_graphs(detector, before_plan(options, files[-1].edits))
    last, rule = files[-1].path, files[-1].metadata.preprocess

    def contents(file: ExportedFile) -> tuple[list[Check], list[str]]:
        checks, notes = contents_of(detector, claims, file, detector.rule, specs.get(file.name))
        if file.path == last:
            checks += companion_checks(Path(last).parent, contract.companions(detector.model))
        return checks, notes

    return check(
        detector,
        files,
        options,
        engine_options(files, kind, engine),
        claims,
        facts,
        contents=contents,
        compare=lambda file: file_checks.compare_with_fresh_export(
            file.model, functools.partial(export_graph, file.name), file.name, file.edits
        ),
        prepared=lambda: compare_preparation(detector, rule, samples, unit),
    )


def read_files(detector: Detector, paths: Sequence[str]) -> tuple[list[ExportedFile], Options]:
    """Read the files of one export, and their common options."""
    files = []
    for path in paths:
        file = open_file(path)
        file.metadata.require(path, detector.family.name)
        files.append(dataclasses.replace(file, name=file.metadata.form))
    first = files[0]
    for file in files:
        if file.options != first.options:
            raise ModelFileError(
                f'{file.path}: was exported with other options than {first.path}; export both again'
            )
    options = exported_options(detector.family, first.options, first.path)
    with file_checks.option_errors(first.path):
        options.check()
    return files, options


def compare_preparation(
    detector: Detector, rule: Any, samples: Collection[Any], unit: str
) -> PreprocessingResult:
    result = compare_prepared(detector, rule, samples, unit)
    layer = detector.family.reference(detector.model).voxel_layer()
    if layer is None or result.error:
        return result
    voxels = compare_voxels(*layer, getattr(rule, 'voxels', rule).to_json())
    differences = *result.differences, *voxels.differences
    return dataclasses.replace(result, differences=differences, error=voxels.error)


def open_sides(
    detector: Detector,
    files: Sequence[ExportedFile],
    options: Options,
    engine: Mapping[str, Any],
    stack: contextlib.ExitStack,
) -> Sides:
    model, contract = detector.model, contract_of(detector.family, options)
    names = {file.name for file in files}
    if absent := [f'{one.name}.onnx' for one in contract.graphs(model, options) if one.name not in names]:
        raise ModelFileError(
            f'{Path(files[0].path).parent}: has no {", ".join(absent)}; all files of an export are '
            'needed: export again'
        )
    metadata = [file.metadata for file in files]
    return Sides(
        detector,
        metadata[-1],
        contract.reference(model),
        open_runner(contract, files, engine, stack),
        output_spec(metadata, contract.runner_outputs(model, options)),
        bars_of(least_precision(metadata)),
    )


def open_runner(
    contract: Contract, files: Sequence[ExportedFile], engine: Mapping[str, Any], stack: contextlib.ExitStack
) -> Stepper:
    """Return a stepper of the files; the stack closes its sessions."""
    runner = contract.runner([file.path for file in files], engine)
    owner = getattr(runner, 'runtime', runner)
    if hasattr(owner, 'close'):
        stack.callback(owner.close)
    return runner


def output_spec(metadata: Sequence[Metadata], between: Sequence[TensorSpec] = ()) -> GraphSpec:
    """Return one spec for outputs and state of all files; `between`: outputs of the runner."""
    specs = [entry.spec for entry in metadata]
    outputs = {tensor.name: tensor for spec in specs for tensor in spec.outputs}
    outputs |= {tensor.name: tensor for tensor in between}
    state = tuple(pair for spec in specs for pair in spec.state)
    return GraphSpec(' + '.join(spec.name for spec in specs), (), tuple(outputs.values()), state)


def limits(metadata: Metadata) -> dict[str, Any]:
    voxels = getattr(metadata.preprocess, 'voxels', metadata.preprocess)
    return {**metadata.postprocess.to_json(), 'max_voxels': getattr(voxels, 'max_voxels', -1)}


def counts_of(metadata: Metadata, results: int, sweep: Sweep | None = None) -> dict[str, int]:
    bounds, rule = limits(metadata), metadata.preprocess
    counts = {'post_max_size' if 'post_max_size' in bounds else 'max_num': results}
    if sweep is not None and bounds['max_voxels'] > 0:
        counts['max_voxels'] = count_voxels(sweep.points, getattr(rule, 'voxels', rule))
    return counts


class Sweeps(Subject):
    """The user's test path over sweeps, and files on their engine; `plain`: a sweep with nothing in it."""

    def __init__(
        self, sides: Sides, reference: Any, sweeps: Collection[Sweep], plain: Sweep | None = None
    ) -> None:
        self.sides, self.reference, self.given, self.plain = sides, reference, sweeps, plain
        self.spec, self.bars, self.settings = sides.spec, sides.bars, limits(sides.metadata)
        self.task, self.module = sides.detector.family.task, sides.detector.model
        self.unread, self.watch, self.pairs = Unread(sides.spec, sides.runner), Watch(), []
        self.first: Sweep | None = None

    def sample(self, entry: Sweep, index: int, mode: str) -> Sample:
        self.first = self.first or entry
        return Sample(entry.name, entry, 'x'.join(map(str, entry.points.shape)), titles=['boxes'])

    def want(self, sample: Sample, state: Any) -> Step:
        with self.watch:
            step = self.reference.step(sample.data)
        counts = counts_of(self.sides.metadata, len(step.detections), sample.data)
        return Step(step.outputs, [step.detections], counts=counts)

    def got(self, sample: Sample, state: Any) -> Step:
        step = self.sides.runner.step(sample.data)
        return Step(step.outputs, [step.detections])

    def tensors(self, sample: Sample, state: Any, got: Step) -> Mapping[str, Any]:
        return self.sides.reference.step(sample.data).outputs

    def results(self, sample: Sample, state: Any) -> list[Any]:
        return [self.sides.reference.step(sample.data).detections]

    def on(self, sample: Sample, got: Step) -> Started | None:
        """Decode the files' outputs by the user's head, if they are what it takes."""
        boxes_of = getattr(self.sides.reference, 'boxes_of', None)
        if boxes_of is None or sample.data is self.plain:
            return None
        if not {*getattr(self.sides.reference, 'output_names', ())} <= got.tensors.keys():
            return Started(notes=[NOT_PUT_IN])
        return Started(lambda: [boxes_of(got.tensors)])

    def judged(self, sample: Sample, want: Step, got: Step | Exception, case: Case) -> Case:
        if isinstance(got, Exception):
            return case
        self.unread.look(got.tensors, getattr(self.sides.runner, 'boxes_of', None))
        sides = want.results[0], got.results[0]
        if sample.data is self.plain and len(sides[0].above(bbox3d.SCORE_THR)):
            case = dataclasses.replace(case, detections=(best_scores_row(*sides),))
        title = f'{sample.name or "sweep"}, {len(sample.data.points)} points'
        self.pairs.append(bbox3d.pair_of(sample.data, self.sides.detector.rule, title, *sides))
        return case


def unusual_cases(sides: Sides, first: Sweep) -> list[Case]:
    """Compare special sweeps, and a plain one: tensors, and results if PyTorch finds nothing."""
    reference, rule = sides.reference, sides.detector.rule
    plain = reference.plain_sample(rule, first)
    subject = Sweeps(sides, reference, [*reference.special_samples(rule, first), plain], plain)
    subject.again = -1
    return compare(subject)[0]


def best_scores_row(expected: Detections3D, detections: Detections3D) -> DetectionRow:
    excess = float(detections.scores.max(initial=0.0)) - float(expected.scores.max())
    reason = '' if excess <= MAX_EXCESS else f'the best score is {excess:.3g} higher than in PyTorch'
    return DetectionRow('best score', 0, 0, 0, 0, 1.0, max(excess, 0.0), not reason, reason)
