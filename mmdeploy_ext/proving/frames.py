"""The proof of sweep files, `prove_sweeps`, and parts shared with drives (`drive.py`)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.cli import tracked
from mmdeploy_ext.base.errors import LoadError, ModelFileError
from mmdeploy_ext.base.files import sha256_onnx
from mmdeploy_ext.engines import title_of
from mmdeploy_ext.engines.base import Clock, attempt
from mmdeploy_ext.exporting.precision_plan import before_plan
from mmdeploy_ext.exporting.substitution import without_limits
from mmdeploy_ext.families.base import exported_options
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.proving import file_checks
from mmdeploy_ext.proving.float64 import rounding_of
from mmdeploy_ext.proving.not_shown import Watch, count_voxels, unreached
from mmdeploy_ext.proving.preprocessing.moments import compare_prepared
from mmdeploy_ext.proving.preprocessing.voxels import compare_voxels
from mmdeploy_ext.proving.proof import (
    Unread,
    add_checks,
    check_contents,
    check_graph,
    check_model,
    compare_again,
    engine_class,
    engine_options,
    finish,
    judge_results,
    not_loaded,
    notes_on_export,
    open_file,
    start,
    without_weights,
)
from mmdeploy_ext.proving.provenance import companion_checks
from mmdeploy_ext.proving.recorded.calls import RecordedStepper
from mmdeploy_ext.runtime.tasks import NEEDED_BY_LISTS, bbox3d, match, task_module
from mmdeploy_ext.spec.comparison import compare_tensors
from mmdeploy_ext.spec.matching import Ties, total_reasons
from mmdeploy_ext.spec.metadata import least_precision
from mmdeploy_ext.spec.results import Bars, Case, Check, DetectionRow, Pair, bars_of, failed_detections
from mmdeploy_ext.spec.tensors import GraphSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from mmdeploy_ext.families.contracts import Contract
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.claims import Claims
    from mmdeploy_ext.proving.proof import ExportedFile, Proof
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Stepper, StepResult, Sweep
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.results import PreprocessingResult
    from mmdeploy_ext.spec.tensors import TensorSpec
    from mmdeploy_ext.spec.verdict import Verdict

ADVICE = 'use sweeps with objects that this model finds, more sweeps (--frames) and a trained checkpoint'
"""Advice for too few matched results of sweeps."""
MAX_DRAWN = 4
"""Maximum of sweeps, or frames, in the report."""
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

    def run(self, sweep: Sweep) -> tuple[StepResult, StepResult | Exception]:
        return self.reference.step(sweep), attempt(functools.partial(self.runner.step, sweep))


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
        clock, titles = Clock(), times_of(proof, 'sweep')
        reference, unread = RecordedStepper(detector, sides.reference), Unread(sides.spec)
        watch = Watch()

        def run(sweep: Sweep) -> tuple[Case, list[Pair]]:
            with watch:
                expected = clock.run(titles[0], lambda: reference.step(sweep))
            result = attempt(lambda: clock.run(titles[1], lambda: sides.runner.step(sweep)))
            look_at_outputs(unread, sides.runner, result)
            return judge_sweep(sides, sweep, expected, result)

        first = None
        for sweep in tracked(sweeps, len(sweeps), 'proving'):
            case, pairs = run(sweep)
            results.cases.append(case)
            proof.pairs += pairs
            first = first or sweep
        if first is not None:
            compare_again(proof, lambda: run(first)[0])

        judge_results(proof)
        results.reasons += reasons_of_unread(unread, sides.runner)
        verdict.timing_ms = clock.medians(*titles) if claims.timed else {}
        if not results.reasons:
            results.reasons += total_reasons(results.cases, verdict.bars, 'sweep', 'sweep', ADVICE)
        verdict.notes += notes_on_sides(sides)
        proof.add_notes(dict.fromkeys(note for case in results.cases for note in case.notes))
        if first is not None:
            results.cases += unusual_cases(sides, first)
    verdict.unreached = unreached(limits(sides.metadata), results.cases, '--frames')
    verdict.unreached += watch.lines(limits(sides.metadata), '--frames')
    verdict.pairs = proof.pairs[:MAX_DRAWN]
    return finish(proof)


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
    proof = start(detector, files, options, engine_options(files, kind, engine), claims, facts)
    graphs = contract_of(family, options).graphs(detector.model, options)
    specs = {graph.name: graph.spec for graph in graphs}
    export_graph = file_checks.of_graphs(detector, before_plan(options, files[-1].edits))
    for place, file in enumerate(files):
        check_contents(proof, file, detector.rule, specs.get(file.name))
        if file is files[-1]:
            add_checks(proof, file, companions_checks(detector, options, Path(file.path).parent))
        export = functools.partial(export_graph, file.name)
        compare = functools.partial(
            file_checks.compare_with_fresh_export, file.model, export, file.name, file.edits
        )
        check_graph(proof, file, compare)
        del compare
        files[place] = file = without_weights(file)
    check_model(proof)
    rule = files[-1].metadata.preprocess
    proof.results.preprocessing = compare_preparation(detector, rule, samples, unit)
    return proof


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


def companions_checks(detector: Detector, options: Options, folder: Path) -> list[Check]:
    contract = contract_of(detector.family, options)
    return list(companion_checks(folder, contract.companions(detector.model)))


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


def look_at_outputs(unread: Unread, runner: Stepper, result: StepResult | Exception) -> None:
    if hasattr(runner, 'boxes_of') and not isinstance(result, Exception):
        unread.look(result.outputs, runner.boxes_of)


def reasons_of_unread(unread: Unread, runner: Stepper) -> list[str]:
    return unread.reasons if hasattr(runner, 'boxes_of') else []


def times_of(proof: Proof, unit: str) -> tuple[str, str]:
    return f'PyTorch ({unit})', f'{proof.verdict.subject["engine"]} ({unit})'


def notes_on_sides(sides: Sides) -> list[str]:
    notes = notes_on_export(sides.detector, sides.metadata)
    return [*notes, *getattr(sides.reference, 'notes', ())]


def limits(metadata: Metadata) -> dict[str, Any]:
    voxels = getattr(metadata.preprocess, 'voxels', metadata.preprocess)
    return {**metadata.postprocess.to_json(), 'max_voxels': getattr(voxels, 'max_voxels', -1)}


def counts_of(metadata: Metadata, results: int, sweep: Sweep | None = None) -> dict[str, int]:
    bounds, rule = limits(metadata), metadata.preprocess
    counts = {'post_max_size' if 'post_max_size' in bounds else 'max_num': results}
    if sweep is not None and bounds['max_voxels'] > 0:
        counts['max_voxels'] = count_voxels(sweep.points, getattr(rule, 'voxels', rule))
    return counts


def judge_sweep(
    sides: Sides, sweep: Sweep, expected: StepResult, result: StepResult | Exception
) -> tuple[Case, list[Pair]]:
    """Return levels 2 and 3 of one sweep, and its image, or [] if the engine failed."""
    if isinstance(result, Exception):
        return judge_tensors(sides, sweep, expected, result), []
    substituted = match_substituted(sides, result)  # first: a float64 run changes the last sample
    case = judge_tensors(sides, sweep, expected, result)
    detections = expected.detections, result.detections
    notes = ()
    if sides.bars.is_float32 and hasattr(sides.reference, 'boxes_of') and not can_be_put_in(sides, result):
        notes = (NOT_PUT_IN,)
    case = dataclasses.replace(case, substituted=substituted, whole=True, notes=notes)
    settings = {}
    if sides.bars.is_float32:
        settings = dict(tied=ties_of(sides, detections, lambda: sides.reference.step(sweep).detections))
    row = match(sides.detector.family.task, 'boxes', *detections, sides.bars, **settings)
    case = dataclasses.replace(case, detections=(row,))
    title = f'{sweep.name or "sweep"}, {len(sweep.points)} points'
    return case, [bbox3d.pair_of(sweep, sides.detector.rule, title, *detections)]


def judge_tensors(sides: Sides, sweep: Sweep, expected: StepResult, result: StepResult | Exception) -> Case:
    counts = counts_of(sides.metadata, len(expected.detections), sweep)
    case = Case(sweep.name, 'x'.join(map(str, sweep.points.shape)), False, counts=counts)
    if isinstance(result, Exception):
        return dataclasses.replace(
            case, detections=(failed_detections(sweep.name, expected.detections, result),)
        )
    rounding = None
    if not sides.detector.family.memory:
        run = functools.partial(sides.reference.step, sweep)
        rounding = rounding_of(sides.detector.model, expected.outputs, lambda: run().outputs)
    rows = compare_tensors(expected.outputs, result.outputs, sides.spec, rounding, sides.bars)
    return dataclasses.replace(case, tensors=tuple(rows))


def can_be_put_in(sides: Sides, result: StepResult) -> bool:
    names = getattr(sides.reference, 'output_names', ())
    return hasattr(sides.reference, 'boxes_of') and {*names} <= result.outputs.keys()


def match_substituted(sides: Sides, result: StepResult) -> tuple[DetectionRow, ...]:
    """Match the file's boxes with the user's test path on its outputs.

    Returns () below float32 and for outputs other than the head's.
    """
    if not sides.bars.is_float32 or not can_be_put_in(sides, result):
        return ()
    detections = sides.reference.boxes_of(result.outputs), result.detections
    task = sides.detector.family.task
    one_to_one = getattr(task_module(task), 'ONE_TO_ONE', {})
    tied = ties_of(sides, detections, lambda: sides.reference.boxes_of(result.outputs), **one_to_one)
    return (match(task, 'boxes', *detections, tied=tied, **one_to_one),)


def ties_of(sides: Sides, detections: tuple[Any, Any], run: Callable[[], Any], **one_to_one: float) -> Ties:
    """Return the finder of boxes at a tie; `run` returns PyTorch's boxes."""
    pair_up = task_module(sides.detector.family.task, NEEDED_BY_LISTS).pair_up
    bars = {name: bar for name, bar in one_to_one.items() if name != 'score_thr'}

    def without() -> Any:
        with without_limits(sides.detector.model):
            return run()

    return Ties(detections, without, functools.partial(pair_up, **bars), limits(sides.metadata))


def unusual_cases(sides: Sides, first: Sweep) -> Iterator[Case]:
    rule = sides.detector.rule
    for special in sides.reference.special_samples(rule, first):
        yield judge_sweep(sides, special, *sides.run(special))[0]
    yield nothing_to_see(sides, sides.reference.plain_sample(rule, first))


def nothing_to_see(sides: Sides, plain: Sweep) -> Case:
    """Return a plain sample's case: tensors, and results if PyTorch finds nothing."""
    expected, result = sides.run(plain)
    if not len(expected.detections.above(bbox3d.SCORE_THR)):
        return dataclasses.replace(judge_sweep(sides, plain, expected, result)[0], substituted=())
    case = judge_tensors(sides, plain, expected, result)
    if isinstance(result, Exception):
        return case
    row = best_scores_row(expected.detections, result.detections)
    return dataclasses.replace(case, detections=(row,))


def best_scores_row(expected: Detections3D, detections: Detections3D) -> DetectionRow:
    excess = float(detections.scores.max(initial=0.0)) - float(expected.scores.max())
    reason = '' if excess <= MAX_EXCESS else f'the best score is {excess:.3g} higher than in PyTorch'
    return DetectionRow('best score', 0, 0, 0, 0, 1.0, max(excess, 0.0), not reason, reason)
