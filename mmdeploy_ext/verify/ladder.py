"""Levels 1 to 3 of the ladder: one file against the unpatched PyTorch model, on inputs that it never saw."""

from __future__ import annotations

import dataclasses
import functools
import platform
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from rich.progress import Progress

from mmdeploy_ext import deploy, export
from mmdeploy_ext.backends import ENGINE_TITLES, build_backend
from mmdeploy_ext.cli import one_line, stderr
from mmdeploy_ext.errors import ModelFileError, ShapeError
from mmdeploy_ext.family import ExportOptions
from mmdeploy_ext.files import sha256_file
from mmdeploy_ext.metadata import Metadata, read_metadata
from mmdeploy_ext.spec import DEFAULT_RTOL
from mmdeploy_ext.verify import fresh, full_form, half
from mmdeploy_ext.verify.compare import compare_tensors, without_ties
from mmdeploy_ext.verify.graph_level import judge
from mmdeploy_ext.verify.inputs import ProofInput, proof_inputs
from mmdeploy_ext.verify.provenance import (
    asked_checks,
    hash_checks,
    hashes_of,
    normalisation_notes,
    override_notes,
    provenance,
)
from mmdeploy_ext.verify.structure import check_structure
from mmdeploy_ext.verify.subject import data_hashes
from mmdeploy_ext.verify.tasks import task_module
from mmdeploy_ext.verify.verdict import Case, DetectionRow, PicturePair, TensorRow, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.backends import Backend
    from mmdeploy_ext.deploy import Deployment
    from mmdeploy_ext.preprocess import PreparedImage
    from mmdeploy_ext.runtime.detections import Detections

MAX_PICTURES = 8
TIMED_RUNS = 5
LOW_ALONE = 0.005
"""Results below the score threshold of level 3 that may be without a partner, of all of them in a proof."""
LOW_ALONE_LEAST = 2
"""As many may always: one on each side that the other has just below its threshold, or behind its cut."""
TIMED_S = 3.0
"""Two runs at least; no more once they took this long: the figures are a hint, `benchmark.py` measures."""


def export_options(metadata: Metadata, path: str = 'the file') -> ExportOptions:
    """Return the options that a file was exported with.

    Args:
        metadata: of the file.
        path: the file, for the message.

    Raises:
        ModelFileError: the metadata has options that no export of an image model has.
    """
    try:
        return ExportOptions.from_json(
            {key: value for key, value in metadata.options.items() if key != 'cfg_options'}
        )
    except TypeError as error:
        raise ModelFileError(
            f'{path}: its mm2onnx metadata is damaged (options: {error}); export it again'
        ) from error


def open_file(path: str) -> tuple[onnx.ModelProto, Metadata]:
    """Read an ONNX file and what it says about itself.

    Raises:
        ModelFileError: missing, corrupt, weights cut short or not there, or not written by mm2onnx.
    """
    from mmdeploy_ext.graph import files

    metadata = read_metadata(path)
    return files.load(path), metadata


def prove(
    deployment: Deployment,
    path: str,
    images: Sequence[tuple[str, np.ndarray]],
    engine: str = 'OnnxRuntimeBackend',
    edited: bool = False,
    asked: Mapping[str, Any] | None = None,
    **engine_options: Any,
) -> tuple[Verdict, list[PicturePair]]:
    """Prove one file.

    Args:
        deployment: the config and checkpoint that it claims to be.
        path: the ONNX file.
        images: (title, BGR picture); the first is taken as the traced one.
        engine: registered backend name.
        edited: the file was edited on purpose: inputs alone decide about its graph.
        asked: what the export was asked for, where it was said: 'form', or an option of the export.
        engine_options: options of the backend.

    Returns:
        The verdict, and pictures for the report.
    """
    verdict, metadata = check_file(deployment, path, images[0][1], engine, edited)
    verdict.structure += asked_checks(metadata.options, asked or {})
    pictures: list[PicturePair] = []
    engine_options = half.proof_engine(metadata.options, engine, engine_options)
    inputs = proof_inputs(deployment, export_options(metadata, path), images)
    console = stderr()
    with (
        build_backend(engine, path, **engine_options) as backend,
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        verdict.subject['precision'] = half.precision_of(metadata.options, backend.computes_in)
        task = bar.add_task('proving', total=len(inputs))
        for proof_input in inputs:
            case, pairs = run_case(deployment, backend, proof_input)
            verdict.cases.append(case)
            pictures.extend(pairs)
            bar.advance(task)
        if verdict.precision != 'fp32':
            half.judge_whole(verdict, bool(engine_options.get('round_fp16')))
        if all(case.passed for case in verdict.cases):
            verdict.timing_ms = _timing(deployment, backend, inputs[0])
    _judge_whole(verdict, deployment, metadata)
    return verdict, pictures[:MAX_PICTURES]


def check_file(
    deployment: Deployment,
    path: str,
    image_bgr: np.ndarray,
    engine: str = 'OnnxRuntimeBackend',
    edited: bool = False,
) -> tuple[Verdict, Metadata]:
    """Return level 1 of one file as the beginning of a verdict, and what the file says of itself.

    Args:
        deployment: the config and checkpoint that it claims to be.
        path: the ONNX file.
        image_bgr: what a fresh export traces.
        engine: registered backend name, for the subject.
        edited: see `prove`.
    """
    model, metadata = open_file(path)
    if metadata.family != deployment.family.name:
        raise ModelFileError(
            f'{path}: is a model of family {metadata.family!r}; {deployment.config} is '
            f'{deployment.family.name!r}'
        )
    options = export_options(metadata, path)
    reference = fresh.of_images(deployment, options, metadata, image_bgr)
    graph = judge(model, metadata, reference, edited=edited)
    hashes, notes = hash_checks(deployment, hashes_of(metadata), graph.equal)
    contract = deploy.make_metadata(deployment, options).spec
    rule = deploy.rule_of(deployment, options)
    checks = [*check_structure(model, metadata), *hashes, *provenance(deployment, metadata, rule, contract)]
    subject = _subject(deployment, path, metadata, engine)
    return Verdict(subject, checks, notes=notes, graphs=[graph]), metadata


def run_case(
    deployment: Deployment, backend: Backend, proof_input: ProofInput
) -> tuple[Case, list[PicturePair]]:
    """Give one input to both engines and compare tensors and detections.

    An engine that fails, and outputs that cannot be post-processed, are a failed case, not an exception.
    """
    family, metadata = deployment.family, backend.metadata
    is_half = half.precision_of(metadata.options, backend.computes_in) != 'fp32'
    feeds = family.feeds(proof_input.images, proof_input.rescale)
    shape = 'x'.join(map(str, feeds[metadata.spec.input_names[0]].shape))
    expected = family.reference_detections(deployment.model, proof_input.images, proof_input.rescale)
    titles = [title for title, _ in proof_input.sources]
    rows: tuple[TensorRow, ...] = ()
    try:
        outputs = backend.infer({name: feeds[name] for name in metadata.spec.input_names if name in feeds})
        rows = (
            *_tensor_rows(deployment, metadata, feeds, outputs, is_half),
            *_form_rows(deployment, metadata, feeds, outputs, is_half),
        )
        if metadata.options.get('score_form') == 'product':
            return Case(proof_input.name, shape, proof_input.traced, rows), []
        found = family.detections(metadata, outputs, feeds)
        if len(found) != len(expected):
            raise ShapeError(f'got results of {len(found)} images, expected {len(expected)}')
    except (ValueError, IndexError) as error:
        failed = tuple(_failed(title, wanted, error) for title, wanted in zip(titles, expected, strict=True))
        return Case(proof_input.name, shape, proof_input.traced, rows, failed), []
    detections = match_images(
        deployment, metadata, titles, expected, found, is_half, _longer(deployment, proof_input)
    )
    if is_half and not rows:
        rows = _half_rows(deployment, expected, found)
    matched = zip(proof_input.sources, proof_input.images, expected, found, strict=True)
    title = ENGINE_TITLES[type(backend).__name__]
    pairs = [_picture(*sides, proof_input.rescale, title) for sides in matched]
    return Case(proof_input.name, shape, proof_input.traced, rows, detections), pairs


def match_images(
    deployment: Deployment,
    metadata: Metadata,
    titles: Sequence[str],
    expected: Sequence[Any],
    found: Sequence[Any],
    is_half: bool,
    longer: Callable[[], Sequence[Any]] | None = None,
) -> tuple[DetectionRow, ...]:
    """Return level 3 of one case: the results of every image, matched by the bars of its precision.

    Args:
        deployment: the model.
        metadata: of the file.
        titles: of the images.
        expected: results of the unpatched model per image.
        found: of the engine on trial.
        is_half: judge by the bars of half precision.
        longer: returns `expected` with longer lists per image, to tell ties at the cut.
    """
    task = deployment.family.task
    bars = half.BARS.of_task(task) if is_half else {}
    match, capacity = task_module(task).match_detections, metadata.postprocess.get('max_per_img')
    return tuple(
        match(
            title,
            wanted,
            got,
            capacity=capacity,
            beyond=longer and (lambda index=index: longer()[index]),
            **bars,
        )
        for index, (title, wanted, got) in enumerate(zip(titles, expected, found, strict=True))
    )


def _longer(deployment: Deployment, proof_input: ProofInput) -> Callable[[], Sequence[Any]]:
    """Return what runs the unpatched model once more, with a higher limit of results; at most once."""

    @functools.cache
    def run() -> Sequence[Any]:
        family, model = deployment.family, deployment.model
        with family.longer_lists(model):
            return family.reference_detections(model, proof_input.images, proof_input.rescale)

    return run


def _form_rows(
    deployment: Deployment,
    metadata: Metadata,
    feeds: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    is_half: bool,
) -> list[TensorRow]:
    """Return what a `full` graph breaks of its contract besides the results themselves."""
    if metadata.form != 'full':
        return []
    family, model = deployment.family, deployment.model
    rows = full_form.order_rows(outputs, family.num_classes(model))
    if full_form.CANDIDATES in outputs:
        slack = half.BARS.score if is_half else DEFAULT_RTOL
        rows += full_form.count_rows(outputs, *family.candidate_bounds(model, feeds, slack))
    return rows


def _half_rows(
    deployment: Deployment, expected: Sequence[Any], found: Sequence[Any]
) -> tuple[TensorRow, ...]:
    """Return cosines of a form that gives results only: of the matched ones."""
    task = deployment.family.task
    pair_up = task_module(task).pair_up
    rows: list[TensorRow] = []
    for index, (wanted, got) in enumerate(zip(expected, found, strict=True)):
        pairs = pair_up(wanted, got, **half.BARS.of_task(task)).matched
        named = half.matched_rows(wanted, got, pairs)
        several = f' of image {index}' if len(expected) > 1 else ''
        rows += [dataclasses.replace(row, tensor=row.tensor + several) for row in named]
    return tuple(rows)


def _tensor_rows(
    deployment: Deployment,
    metadata: Metadata,
    feeds: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    is_half: bool = False,
) -> tuple[TensorRow, ...]:
    """Return level 2 of one case; forms that give detections have none."""
    if all(tensor.compare != 'values' for tensor in metadata.spec.outputs):
        return ()
    family, model = deployment.family, deployment.model
    score_form = metadata.options.get('score_form', 'separate')
    own = {name: metadata.options[name] for name in family.own_options if name in metadata.options}
    ties = dict(ties_rtol=half.CHOICE_RTOL) if is_half else {}
    reference = family.reference_for(model, feeds, outputs, metadata.form, score_form, **ties, **own)
    slack = half.RTOL if is_half else DEFAULT_RTOL
    outputs = without_ties(reference, outputs, family.harmless(model, feeds, **own), slack)
    rows = compare_tensors(reference, outputs, metadata.spec)
    return tuple(half.judge(rows) if is_half else rows)


def _failed(title: str, wanted: Detections, error: Exception) -> DetectionRow:
    """Return the row of an image whose outputs gave no detections at all."""
    reason = f'no detections: {one_line(error)[:200]}'
    return DetectionRow(title, len(wanted), 0, len(wanted), 0, 0.0, 1.0, False, reason, broken=True)


def _picture(
    source: tuple[str, np.ndarray],
    image: PreparedImage,
    reference: Detections,
    candidate: Detections,
    rescaled: bool,
    engine: str,
) -> PicturePair:
    """Bring both engines' boxes to pixels of the original picture."""
    if not rescaled:
        reference, candidate = reference.scaled(image.scale_factor), candidate.scaled(image.scale_factor)
    title = f'{source[0]}, input {image.tensor.shape[1]}x{image.tensor.shape[2]}'
    return PicturePair(title, source[1], reference, candidate, engine)


def _timing(deployment: Deployment, backend: Backend, proof_input: ProofInput) -> dict[str, float]:
    """Return median milliseconds of both engines on the traced input, interleaved."""
    family = deployment.family
    feeds = {
        name: array
        for name, array in family.feeds(proof_input.images, proof_input.rescale).items()
        if name in backend.spec.input_names
    }
    seconds: dict[str, list[float]] = {
        'PyTorch (network and post-processing)': [],
        f'{backend.engine} (graph)': [],
    }
    begin = time.perf_counter()
    for index in range(TIMED_RUNS):
        if index >= 2 and time.perf_counter() - begin > TIMED_S:
            break
        for name, run in zip(
            seconds,
            (
                lambda: family.reference_detections(deployment.model, proof_input.images, False),
                lambda: backend.infer(feeds),
            ),
            strict=True,
        ):
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(values) * 1e3, 2) for name, values in seconds.items()}


def _subject(deployment: Deployment, path: str, metadata: Metadata, engine: str) -> dict[str, Any]:
    return dict(
        file=str(path),
        file_sha256=sha256_file(path),
        **data_hashes([path]),
        family=metadata.family,
        task=deployment.family.task,
        options=metadata.options,
        form=metadata.form,
        opset=metadata.options['opset'],
        exporter=metadata.options['exporter'],
        shape=_shape_title(metadata.options),
        engine=engine,
        config=deployment.config,
        checkpoint=deployment.checkpoint,
        config_sha256=deployment.config_sha256,
        checkpoint_sha256=deployment.checkpoint_sha256,
        exported_with=metadata.versions,
        proven_with=export.versions(),
        python=platform.python_version(),
    )


def _shape_title(options: Mapping[str, Any]) -> str:
    if options['dynamic']:
        return 'dynamic'
    return 'dynamic batch, fixed size' if options.get('dynamic_batch') else 'fixed'


def _judge_whole(verdict: Verdict, deployment: Deployment, metadata: Metadata) -> None:
    """Add what single rows cannot see: that nothing was compared, or nothing was found."""
    detections = [row for case in verdict.cases for row in case.detections]
    tensors = [row for case in verdict.cases for row in case.tensors]
    if not detections and not tensors:
        verdict.reasons.append('nothing was compared')
    if detections and not sum(row.reference for row in detections):
        verdict.reasons.append(
            'nothing was found in any image, so nothing was matched: use images with objects that '
            'this model finds (--input-img, --test-img, --images), and a trained checkpoint'
        )
    elif all(case.passed for case in verdict.cases):  # otherwise they say more of what is wrong
        verdict.reasons += _pooled(detections, verdict.precision)
    verdict.notes += normalisation_notes(deployment)
    verdict.notes += override_notes(deployment, metadata)
    if metadata.options.get('score_form') == 'product':
        verdict.notes.append(
            'score_form=product keeps no class scores, so detections are not compared: a threshold on '
            'the product is not the one that get_bboxes applies'
        )


def _pooled(detections: Sequence[DetectionRow], precision: str) -> list[str]:
    """Return why detections fail that pass one by one."""
    if detections and not sum(row.matched for row in detections):
        return ['no result was matched in any image']
    low, alone = (sum(getattr(row, name) for row in detections) for name in ('low', 'low_alone'))
    if precision != 'fp32' or alone <= max(LOW_ALONE_LEAST, LOW_ALONE * low):
        return []
    return [
        f'{alone} of {low} results below the score threshold have no partner on the other side, which is '
        f'more than {100 * LOW_ALONE:g} %'
    ]
