"""The proof of an image file: graph, tensors and results, on the traced input and others."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.cli import tracked
from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.errors import FrozenWarning, LoadError, ModelFileError, ShapeError, one_line
from mmdeploy_ext.base.files import sha256_onnx
from mmdeploy_ext.engines import build_backend, title_of
from mmdeploy_ext.engines.base import FAILURES, attempt
from mmdeploy_ext.engines.plugins import open_with_plugins
from mmdeploy_ext.exporting.export import save
from mmdeploy_ext.exporting.precision_plan import before_plan
from mmdeploy_ext.exporting.substitution import (
    _configs,
    border_names,
    observed,
    substituted,
    without_limits,
)
from mmdeploy_ext.families.base import exported_options
from mmdeploy_ext.families.detector import TRACED, check_picture_options, rule_of
from mmdeploy_ext.families.detector_files import make_metadata
from mmdeploy_ext.proving import file_checks, half_precision
from mmdeploy_ext.proving.float64 import rounding_of
from mmdeploy_ext.proving.inputs.inputs import plain_inputs, proof_inputs, smaller_size
from mmdeploy_ext.proving.not_shown import Watch, counts_of_images, limits_of, unreached
from mmdeploy_ext.proving.preprocessing.pictures import compare_pictures
from mmdeploy_ext.proving.proof import (
    AGAIN,
    Unread,
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
from mmdeploy_ext.proving.provenance import normalisation_notes
from mmdeploy_ext.proving.references import (
    InputReference,
    changed_children,
    empty_reference,
    options_besides_form,
    reference_with_empty_image,
    zoomed_on_object,
)
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.runtime.detections import with_labels
from mmdeploy_ext.runtime.draw import visible
from mmdeploy_ext.runtime.tasks import NEEDED_BY_LISTS, bbox2d, match, match_bars, task_module
from mmdeploy_ext.spec.comparison import (
    compare_named,
    compare_tensors,
    count_rows,
    failed_row,
    order_rows,
    shape_rows,
)
from mmdeploy_ext.spec.matching import Ties, matched_rows, total_reasons
from mmdeploy_ext.spec.options import LIMITS
from mmdeploy_ext.spec.results import FLOAT32, Case, DetectionRow, Pair, bars_of, failed_detections
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL, VALID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    import onnx

    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.families.reference import ImageReference
    from mmdeploy_ext.proving.claims import Claims
    from mmdeploy_ext.proving.inputs.inputs import ProofInput
    from mmdeploy_ext.proving.proof import ExportedFile, Proof
    from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.results import Bars, GraphResult, PreprocessingResult, TensorRow
    from mmdeploy_ext.spec.tensors import GraphSpec
    from mmdeploy_ext.spec.verdict import Verdict

MAX_DRAWN = 8
"""Maximum of images in the report."""
UNPASSED = 'a threshold that nothing passes'
NEVER = 2.0
"""A threshold above all scores."""
TIMED_RUNS = 3
TIMED_S = 3.0


def prove_pictures(
    detector: Detector,
    paths: Sequence[str],
    pictures: Sequence[tuple[str, np.ndarray]],
    engine: Mapping[str, Any],
    claims: Claims,
    picture_files: Sequence[str | Path] = (),
) -> Verdict:
    """Prove one file on (title, BGR image); the first is traced."""
    proof = check_pictures(detector, paths, pictures, engine, claims, picture_files)
    (file,), results, verdict = proof.files, proof.results, proof.verdict
    with contextlib.ExitStack() as stack:
        try:
            backend = stack.enter_context(open_backend(proof.engine, file))
        except LoadError as error:
            return not_loaded(proof, error)
        verdict.subject['precision'] = backend.computes_in or file.metadata.precision
        beside = None
        if verdict.bars.is_float32 and not shows_inner(proof.engine):
            beside = open_beside(file, stack)

        inputs, notes = picture_inputs(detector, file, proof.options, pictures)
        verdict.notes += notes
        first, sums, unread = None, [], Unread(file.metadata.spec)
        watch = Watch()
        for entry in tracked(inputs, len(inputs), 'proving'):
            reference = entry
            if not isinstance(entry, InputReference):
                reference = InputReference(detector, entry)
            first = first or reference
            case, pairs = run_case(reference, backend, beside)
            unread.look(reference.outputs, compared_by(reference, file.metadata))
            reference.forget()
            results.cases.append(case)
            proof.pairs += pairs
            sums.append(reference.sums)
            watch.add(reference.watch)
        place = smallest(inputs)
        again = InputReference(detector, input_of(inputs[place]))
        compare_again(proof, lambda: run_case(again, backend, beside)[0], place)
        if names := changed_children(sums[place], again.sums):
            results.reasons.append(f'{AGAIN} (state that runs change): outputs of {", ".join(names)}')

        results.cases += without_result(proof, pictures[0][1])
        judge_results(proof)
        if claims.timed and all(case.passed for case in results.cases):
            verdict.timing_ms = timing(first, backend)
    if not results.reasons:
        results.reasons += total_reasons(results.cases, verdict.bars)
    verdict.notes += [*normalisation_notes(detector), *notes_on_export(detector, file.metadata)]
    if verdict.bars.is_float32:
        verdict.notes += substitution_notes(first.code, results.cases)
    if left_out := first.code.results_left_out(file.options):
        verdict.notes.append(left_out)
    else:
        results.reasons += unread.reasons
    limits = limits_of(file.metadata.postprocess.to_json(), file.options)
    verdict.unreached = unreached(limits, results.cases, '--images')
    verdict.unreached += watch.lines(file.metadata.postprocess.to_json(), '--images')
    results.reasons += watch.other_epsilons(file.model) if claims.edited else []
    verdict.pairs = proof.pairs[:MAX_DRAWN]
    return finish(proof)


def without_result(proof: Proof, picture: np.ndarray) -> list[Case]:
    """Compare a file of the same traced code with a threshold that nothing passes, unless an input was empty.

    A trace takes the branches where something is selected; this shows what its graph does where nothing is.
    """
    detector, options = proof.detector, proof.options
    thresholds = [config for config in _configs(detector.model) if 'score_thr' in config]
    was_empty = any(row.reference == 0 for case in proof.results.cases for row in case.detections)
    if detector.family.name != TRACED or not thresholds or was_empty:
        return []
    with contextlib.ExitStack() as stack:
        for config in thresholds:
            stack.enter_context(replaced_entry(config, 'score_thr', NEVER))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='mm2onnx-'))
        size = smaller_size(detector, options)
        model = file_checks.of_images(detector, options, picture, size)()
        path = str(Path(folder, 'empty.onnx'))
        save(model, path, make_metadata(detector, options))
        plain = dataclasses.replace(plain_inputs(detector, options)[0], name=UNPASSED)
        backend = stack.enter_context(open_backend({}, open_file(path)))
        return [run_case(InputReference(detector, plain), backend)[0]]


def ask_pictures(
    detector: Detector,
    path: str,
    pictures: Sequence[tuple[str, np.ndarray]],
    picture_files: Sequence[str | Path] = (),
) -> None:
    """Run PyTorch on the proof's inputs, for `detector.recording`."""
    file, options = read_picture_file(detector, path)
    compare_preparation(detector, file.metadata, picture_files, pictures[0][1])
    inputs, _ = picture_inputs(detector, file, options, pictures)
    inputs.append(input_of(inputs[smallest(inputs)]))  # like the proof
    for entry in tracked(inputs, len(inputs), 'asking'):
        reference = entry if isinstance(entry, InputReference) else InputReference(detector, entry)
        reference.results  # noqa: B018 computed on demand
        reference.forget()


def check_pictures(
    detector: Detector,
    paths: Sequence[str],
    pictures: Sequence[tuple[str, np.ndarray]],
    engine: Mapping[str, Any],
    claims: Claims,
    picture_files: Sequence[str | Path] = (),
) -> Proof:
    file, options = read_picture_file(detector, paths[0])
    kind = engine_class(engine)
    shape = 'dynamic' if file.options['dynamic'] else 'fixed'
    if shape == 'fixed' and file.options.get('dynamic_batch'):
        shape = 'dynamic batch, fixed size'
    facts = dict(
        file_sha256=sha256_onnx(file.path),
        form=file.metadata.form,
        inputs=list(file.metadata.spec.input_names),
        shape=shape,
        engine=kind,
        **file.facts,
    )
    proof = start(detector, [file], options, engine_options([file], kind, engine), claims, facts)
    check_contents(proof, file, rule_of(detector, options), make_metadata(detector, options).spec)
    check_graph(proof, file, lambda: compare_graph(detector, file.model, options, pictures[0][1], file.edits))
    file = without_weights(file)
    proof.files = [file]
    check_model(proof)

    proof.results.preprocessing = compare_preparation(detector, file.metadata, picture_files, pictures[0][1])
    return proof


def compare_graph(
    detector: Detector,
    model: onnx.ModelProto,
    options: Options,
    picture: np.ndarray,
    edits: Sequence[str] = (),
) -> GraphResult:
    """Compare a file with a fresh export; a dynamic one is first traced at a smaller size."""
    options, size = before_plan(options, edits), (options.height, options.width)
    for traced in dict.fromkeys([smaller_size(detector, options), size]):
        export = file_checks.of_images(detector, options, picture, traced)
        result = file_checks.compare_with_fresh_export(model, export, edits=edits)
        if result.equal:
            break
    return result


def compare_preparation(
    detector: Detector, metadata: Metadata, picture_files: Sequence[str | Path], picture: np.ndarray
) -> PreprocessingResult:
    """Compare with the user's test pipeline, and keep its collected entries."""

    def feeds(image: PreparedImage, batch: int) -> Mapping[str, np.ndarray]:
        return detector.family.feeds([image] * batch, rescale=True)

    result, by_pipeline = compare_pictures(
        detector.cfg, metadata, picture_files, picture, detector.normalisation, feeds
    )
    if by_pipeline:
        detector.collected = dict(by_pipeline[0].collected)
    return result


def read_picture_file(detector: Detector, path: str) -> tuple[ExportedFile, Options]:
    file, family = open_file(path), detector.family
    metadata = file.metadata
    metadata.require(path, family.name, family.forms)
    options = exported_options(family, metadata.options, path)
    if options.form != metadata.form:
        raise ModelFileError(
            f'{path}: its form is {metadata.form!r}, but its options say {options.form!r}; export it again'
        )
    with file_checks.option_errors(path):
        options.check()
        check_picture_options(options, detector.cfg, family, detector.model)
    return file, options


def open_backend(engine: Mapping[str, Any], file: ExportedFile) -> Backend:
    """Return the inactive engine of a file.

    ONNX Runtime on the CPU in float32 also returns tensors between stages.
    """
    kind, options = engine_class(engine), {key: value for key, value in engine.items() if key != 'engine'}
    if file.metadata.options.get('nms_plugin'):
        return open_with_plugins(kind, file.path, **options)
    if shows_inner(engine) and file.metadata.precision == 'fp32':
        options['inner_tensors'] = border_names(file.model)
    return build_backend(kind, file.path, **options)


def shows_inner(engine: Mapping[str, Any]) -> bool:
    """Whether an engine returns tensors between stages: ONNX Runtime on the CPU."""
    cpu = half_precision.CPU
    on_cpu = engine.get('providers') in (None, cpu, [cpu], (cpu,))
    return engine_class(engine) == 'OnnxRuntimeBackend' and on_cpu


def open_beside(file: ExportedFile, stack: contextlib.ExitStack) -> Backend | None:
    """Return ONNX Runtime for another engine's file and its inner tensors; None if it cannot run it."""
    try:
        return stack.enter_context(open_backend({}, file))
    except LoadError:
        return None


def picture_inputs(
    detector: Detector,
    file: ExportedFile,
    options: Options,
    pictures: Sequence[tuple[str, np.ndarray]],
) -> tuple[list[ProofInput | InputReference], list[str]]:
    inputs = list(proof_inputs(detector, options, pictures))
    traced = InputReference(detector, inputs[0])
    if traced.code.results_left_out(file.options):
        return [traced, *inputs[1:]], []
    if zoomed := zoomed_on_object(detector, options, traced):
        inputs.append(zoomed)
    empty, note = empty_reference(detector, options)
    if empty is None:
        return [traced, *inputs[1:]], [note]
    run = {0: traced}
    if batch := reference_with_empty_image(detector, inputs, empty.input):
        index, reference = batch
        run[index] = reference
    return [*(run.get(index, one) for index, one in enumerate(inputs)), empty], []


def input_of(entry: ProofInput | InputReference) -> ProofInput:
    return entry.input if isinstance(entry, InputReference) else entry


def smallest(inputs: Sequence[ProofInput | InputReference]) -> int:
    """Return the index of the input with the fewest pixels, which runs again at the end."""
    sizes = [sum(image.tensor.size for image in entry.images) for entry in inputs]
    return sizes.index(min(sizes))


def substitution_notes(code: ImageReference, cases: Sequence[Case]) -> list[str]:
    """Note missing substitution of tensors, and choices among equal results."""
    notes = list(dict.fromkeys(note for case in cases for note in case.notes))
    if any(case.engines for case in cases):
        notes.append('tensors inside the file are from ONNX Runtime, which also ran the file')
    if unjudged := code.unjudged():
        notes.append(unjudged)
    if any(case.substituted for case in cases):
        return notes
    return ["your code did not run on the file's tensors: the end-to-end results decide", *notes]


def run_case(
    reference: InputReference, backend: Backend, beside: Backend | None = None
) -> tuple[Case, list[Pair]]:
    """Run an engine on one input, and compare with the reference; return the case, and pairs to draw.

    `beside`: ONNX Runtime with the same file, for inner tensors.
    """
    feeds, reference.engine_seconds = reference.feeds_of(backend.metadata), []

    def run() -> Mapping[str, np.ndarray]:
        start = time.perf_counter()
        outputs = backend.infer(feeds)
        reference.engine_seconds.append(time.perf_counter() - start)
        return outputs

    outputs = reference.outputs = attempt(run)
    of_runtime = None
    if beside and not isinstance(outputs, Exception):
        of_runtime = attempt(lambda: dict(beside.infer(feeds)))
        if not isinstance(of_runtime, Exception):
            of_runtime = of_runtime, getattr(beside, 'inner', {})
    return judge_outputs(reference, backend, outputs, of_runtime)


def judge_outputs(
    reference: InputReference,
    backend: Backend,
    outputs: Mapping[str, np.ndarray] | Exception,
    of_runtime: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | Exception | None = None,
) -> tuple[Case, list[Pair]]:
    """Compare an engine's outputs, or its error, with the reference; return the case, and pairs to draw.

    `of_runtime`: ONNX Runtime's outputs and inner tensors for the same file, if it ran.
    """
    code, metadata = reference.code, backend.metadata
    proof_input, expected = reference.input, reference.results
    bars = bars_of(backend.computes_in or metadata.precision)
    shape = 'x'.join(map(str, reference.feeds[metadata.spec.input_names[0]].shape))
    case = Case(proof_input.name, shape, proof_input.traced)
    rows: tuple[TensorRow, ...] = ()
    try:
        if isinstance(outputs, Exception):
            raise outputs
        tensors = {**outputs, **getattr(backend, 'inner', {})}
        rows = (
            *_compare_tensors(reference, metadata, tensors, bars),
            *shape_rows(outputs, metadata.spec),
        )
        outputs = with_labels(outputs)
        rows = (*rows, *_contract_rows(reference, metadata, outputs, bars))
        if code.results_left_out(metadata.options):
            return dataclasses.replace(case, tensors=rows), []
        results = results_of_file(reference, metadata, outputs)
        inner, own_results = getattr(backend, 'inner', {}), results
        if isinstance(of_runtime, Exception):
            raise of_runtime
        if of_runtime:
            outputs, inner = of_runtime
            tensors = {**outputs, **inner}
            outputs = with_labels(outputs)
            own_results = results_of_file(reference, metadata, outputs)
    except FAILURES as error:
        titles = [title for title, _ in proof_input.sources]
        failed = (failed_detections(*pair, error) for pair in zip(titles, expected, strict=True))
        return dataclasses.replace(case, tensors=rows, detections=tuple(failed)), []
    if not bars.is_float32 and not rows:
        rows = _cosines_of_results(reference.detector.family.task, expected, results, bars)
    counts = {**counts_of_images(expected, outputs), **code.counts(tensors)}
    case, settings = dataclasses.replace(case, tensors=rows, counts=counts), metadata.postprocess.to_json()
    if bars.is_float32:
        case = judge_parts(case, reference, metadata, outputs, inner, own_results)
        if of_runtime:
            case = dataclasses.replace(case, engines=match_engines(reference, own_results, results, settings))
        case = judge_results_of_images(case, reference, tensors, results, settings)
    else:
        case = dataclasses.replace(case, detections=match_images(reference, expected, results, bars))
    return case, _pictures(reference, results, title_of(type(backend).__name__))


def compared_by(reference: InputReference, metadata: Metadata) -> Callable[[Mapping[str, np.ndarray]], Any]:
    """Return the function from outputs to what the proof compares of them, other than their values."""
    bars = bars_of(metadata.precision)

    def compared(outputs: Mapping[str, np.ndarray]) -> Any:
        outputs = with_labels(outputs)
        results = results_of_file(reference, metadata, outputs)
        rows = _contract_rows(reference, metadata, outputs, bars)
        return results, rows, reference.code.inner_results(outputs, reference.images)

    return compared


def judge_parts(
    case: Case,
    reference: InputReference,
    metadata: Metadata,
    outputs: Mapping[str, np.ndarray],
    inner: Mapping[str, np.ndarray],
    results: Sequence[Any],
) -> Case:
    """Return the case with float32 comparisons of the file's own tensors, part by part.

    `results` are the file's, from `outputs`.
    """
    settings, compared = metadata.postprocess.to_json(), compares_values(metadata)
    tensors, borders = {**outputs, **inner}, border_rows(reference, inner, outputs)
    rows, notes = match_substituted(reference, tensors, results, settings)
    return dataclasses.replace(
        case,
        tensors=(*case.tensors, *borders),
        substituted=rows,
        inner=match_inner(reference, tensors, settings),
        whole=(bool(borders) or compared) and not reference.code.unjudged(),
        notes=notes,
    )


def judge_results_of_images(
    case: Case,
    reference: InputReference,
    tensors: Mapping[str, np.ndarray],
    results: Sequence[Any],
    settings: Mapping[str, Any],
) -> Case:
    """Return the case with an engine's results, matched with PyTorch's end to end."""
    detections = match_images(reference, reference.results, results, FLOAT32, settings)
    ranking = {} if all(row.passed for row in detections) else reference.code.ranking(tensors)
    if not ranking:
        return dataclasses.replace(case, detections=detections)
    with substituted(reference.detector.model, ranking):
        detections = match_images(reference, reference.run(), results, FLOAT32, settings)
    note = f"{case.name}: PyTorch's queries were ordered as in the file; the scores show the difference"
    return dataclasses.replace(case, detections=detections, notes=(*case.notes, note))


def results_of_file(
    reference: InputReference, metadata: Metadata, outputs: Mapping[str, np.ndarray]
) -> Sequence[Any]:
    inputs = reference.feeds, reference.images, reference.input.rescale
    results = reference.code.file_results(metadata, outputs, *inputs)
    if results is None:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', FrozenWarning)  # of which `VALID` has a row
            results = results_of(metadata.family, metadata, outputs, reference.feeds)
    if len(results) != len(reference.results):
        raise ShapeError(f'got results of {len(results)} images, expected {len(reference.results)}')
    return results


def match_images(
    reference: InputReference,
    expected: Sequence[Any],
    results: Sequence[Any],
    bars: Bars,
    settings: Mapping[str, Any] | None = None,
) -> tuple[DetectionRow, ...]:
    """Return level 3 of one case: all images' results, matched with PyTorch's.

    `settings`: of the post-processing, to excuse results at a tie.
    """
    if settings is None:
        task, titles = reference.detector.family.task, [title for title, _ in reference.input.sources]
        sides = zip(titles, expected, results, strict=True)
        return tuple(match(task, *side, bars) for side in sides)
    return match_with_ties(reference, expected, results, reference.run, settings, {})


def match_with_ties(
    reference: InputReference,
    expected: Sequence[Any],
    results: Sequence[Any],
    run: Callable[[], Sequence[Any]],
    settings: Mapping[str, Any],
    bars: Mapping[str, Any],
) -> tuple[DetectionRow, ...]:
    """Match every image's results; `run` returns the reference's."""
    model = reference.detector.model
    task = task_module(reference.detector.family.task, NEEDED_BY_LISTS)
    pair_by = functools.partial(
        task.pair_up, **{name: bar for name, bar in bars.items() if name != 'score_thr'}
    )

    def without(index: int) -> Any:
        with without_limits(model):
            return run()[index]

    rows, titles = [], [title for title, _ in reference.input.sources]
    for index, (title, *sides) in enumerate(zip(titles, expected, results, strict=True)):
        tied = Ties(sides, functools.partial(without, index), pair_by, settings)
        rows.append(task.match_detections(title, *sides, tied=tied, **bars))
    return tuple(rows)


def match_engines(
    reference: InputReference, expected: Sequence[Any], results: Sequence[Any], settings: Mapping[str, Any]
) -> tuple[DetectionRow, ...]:
    """Match an engine's results with ONNX Runtime's for the same file."""
    rows = match_with_ties(reference, expected, results, reference.run, settings, dict(score_thr=0.0))
    return tuple(dataclasses.replace(row, image=f'{row.image}, against ONNX Runtime') for row in rows)


def border_rows(
    reference: InputReference, tensors: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> tuple[TensorRow, ...]:
    """Compare tensors between stages with the results of the user's methods."""
    code, results = reference.code, {**outputs, **tensors}
    expected = _at_borders(code, reference.borders, tensors)
    actual = {name: tensors[name] for name in expected}
    expected_rows, actual_rows = code.inner_tensors(results)

    def run() -> dict[str, np.ndarray]:
        with observed(code.model, code.borders()) as calls, contextlib.suppress(Exception):
            reference.run()  # code after the borders may refuse float64
        return {**_at_borders(code, calls, tensors), **code.inner_tensors(results)[0]}

    sides = {**expected, **expected_rows}, {**actual, **actual_rows}
    rounding = rounding_of(code.model, sides[0], run)
    return tuple(compare_named(*sides, DEFAULT_RTOL, rounding=rounding))


def _at_borders(
    code: ImageReference, results: Mapping[str, list[Any]], tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path, named in code.borders().items():
        if calls := results.get(path):
            returned = {name: tensor for name, tensor in named(calls).items() if name in tensors}
            found |= {name: tensor.detach().cpu().numpy() for name, tensor in returned.items()}
    return found


def match_substituted(
    reference: InputReference,
    tensors: Mapping[str, np.ndarray],
    results: Sequence[Any],
    settings: Mapping[str, Any],
) -> tuple[tuple[DetectionRow, ...], tuple[str, ...]]:
    """Match the file's results with the user's test path on the file's tensors.

    Returns a row per image, or none if the tensors do not fit; and notes on refusals.
    """
    family, model = reference.detector.family, reference.detector.model
    task, given = task_module(family.task), reference.code.substitutes(tensors)
    if not given:
        return (), ()

    def run() -> list[Any]:
        with substituted(model, given):
            return reference.run()

    try:
        expected = run()
    except Exception as error:  # the user's code may need more than the file has
        return (), (f"your code does not accept the file's tensors: {one_line(error)[:200]}",)
    one_to_one = getattr(task, 'ONE_TO_ONE', {})
    return match_with_ties(reference, expected, results, run, settings, one_to_one), ()


def match_inner(
    reference: InputReference, tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> tuple[DetectionRow, ...]:
    """Match boxes between stages with the user's code."""
    titles = [title for title, _ in reference.input.sources]
    sides = reference.code.inner_results(tensors, reference.images)

    def without(index: int) -> Any:
        with without_limits(reference.detector.model):
            return reference.code.inner_results(tensors, reference.images)[index][0]

    rows, bars = [], bbox2d.ONE_TO_ONE
    pair_by = functools.partial(bbox2d.pair_up, iou_bar=bars['iou_bar'], score_bar=bars['score_bar'])
    for index, (title, pair) in enumerate(zip(titles, sides, strict=False)):
        tied = Ties(pair, functools.partial(without, index), pair_by, settings)
        rows.append(bbox2d.match_detections(f'proposals of {title}', *pair, tied=tied, **bars))
    return tuple(rows)


def _contract_rows(
    reference: InputReference,
    metadata: Metadata,
    outputs: Mapping[str, np.ndarray],
    bars: Bars,
) -> list[TensorRow]:
    family, model = reference.detector.family, reference.detector.model
    rows = order_rows(outputs, family.num_classes(model), metadata.spec.score_columns())
    if limits := {name: metadata.options[name] for name in LIMITS if metadata.options.get(name)}:
        bounds = reference.compute(reference.code.candidate_bounds, bars.score, **limits)
        rows += count_rows(outputs, bounds)
    if not np.all(outputs.get(VALID, True)):
        rows.append(failed_row(VALID, 'is false: the graph holds a fact that is not true of this input'))
    return rows


def _cosines_of_results(
    task: str, expected: Sequence[Any], results: Sequence[Any], bars: Bars
) -> tuple[TensorRow, ...]:
    rows = []
    for index, sides in enumerate(zip(expected, results, strict=True)):
        pairs = task_module(task).pair_up(*sides, **match_bars(task, bars)).matched
        suffix = f' of image {index}' if len(expected) > 1 else ''
        rows += [
            dataclasses.replace(row, tensor=row.tensor + suffix) for row in matched_rows(*sides, pairs, bars)
        ]
    return tuple(rows)


def compares_values(metadata: Metadata) -> bool:
    return any(tensor.compare == 'values' for tensor in metadata.spec.outputs)


def _compare_tensors(
    reference: InputReference,
    metadata: Metadata,
    tensors: Mapping[str, np.ndarray],
    bars: Bars,
) -> tuple[TensorRow, ...]:
    if not compares_values(metadata):
        return ()
    code = reference.code
    options = options_besides_form(reference.detector, metadata)
    outputs = {name: tensors[name] for name in metadata.spec.output_names if name in tensors}
    given = reference.feeds, tensors, metadata.form
    expected = code.expected_tensors(*given, **options)
    if expected is None:
        expected = reference.compute(code.tensors, metadata.form, **options)

    def run() -> Mapping[str, np.ndarray]:
        results = code.expected_tensors(*given, **options)
        return code.tensors(reference.feeds, metadata.form, **options) if results is None else results

    return compare_outputs(code, expected, outputs, metadata.spec, bars, run)


def compare_outputs(
    code: ImageReference,
    expected: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    spec: GraphSpec,
    bars: Bars,
    run: Callable[[], Mapping[str, np.ndarray]] | None = None,
) -> tuple[TensorRow, ...]:
    """Compare tensors by name; rows of a top-k in any order.

    `run` recomputes `expected`.
    """
    sides = code.in_order(expected), code.in_order(outputs)
    rounding = run and rounding_of(code.model, sides[0], lambda: code.in_order(run()))
    return tuple(compare_tensors(*sides, spec, rounding, bars))


def _pictures(reference: InputReference, results: Sequence[Any], engine: str) -> list[Pair]:
    proof_input, pairs = reference.input, []
    if proof_input.left_out:
        return []
    columns = proof_input.sources, proof_input.images, reference.results, results
    for (title, picture), image, *sides in zip(*columns, strict=True):
        if not proof_input.rescale:
            sides = [side.scaled(image.scale_factor) for side in sides]
        size = f'input {image.tensor.shape[1]}x{image.tensor.shape[2]}'
        pairs.append(Pair(f'{title}, {size}', visible(picture), *sides, engine))
    return pairs


def timing(reference: InputReference, backend: Backend) -> dict[str, float]:
    feeds = {name: array for name, array in reference.feeds.items() if name in backend.spec.input_names}
    runs = (
        lambda: reference.code.results(reference.images, rescale=False),
        lambda: backend.infer(feeds),
    )
    measured = [reference.seconds] if reference.seconds else [], list(reference.engine_seconds)
    begin = time.perf_counter() - sum(map(sum, measured))
    while min(map(len, measured)) < TIMED_RUNS:
        if all(measured) and time.perf_counter() - begin > TIMED_S:
            break
        for seconds, run in zip(measured, runs, strict=True):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    medians = [round(statistics.median(seconds) * 1e3, 2) for seconds in measured]
    return {'PyTorch (network and post-processing)': medians[0], f'{backend.engine} (graph)': medians[1]}
