"""Levels 2 and 3 of pictures: files judged by what the unpatched model gives, which is computed once."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.compare.rows import TensorRow
from mmdeploy_ext.compare.tensors import compare_tensors, without_ties
from mmdeploy_ext.contract.options import LIMITS
from mmdeploy_ext.contract.spec import DEFAULT_RTOL
from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.engines import title_of
from mmdeploy_ext.proof import full_form, half
from mmdeploy_ext.proof.levels.run_twice import FAILURES, nothing_found, run_twice
from mmdeploy_ext.proof.results import Case, DetectionRow, Pair
from mmdeploy_ext.proof.tasks import task_module

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.inputs.pictures import PreparedImage
    from mmdeploy_ext.proof.half import HalfBars
    from mmdeploy_ext.proof.references import Reference
    from mmdeploy_ext.runtime.detections import Detections

TIMED_RUNS = 3
TIMED_S = 3.0
"""No more runs than those of the proof once they took this long: the figures are a hint."""


def run_case(reference: Reference, backend: Backend) -> tuple[list[Case], list[Pair]]:
    """Give one input to an engine twice and compare tensors and results with the reference."""
    feeds, reference.engine_seconds = reference.feeds_of(backend.metadata), []

    def run() -> Mapping[str, np.ndarray]:
        start = time.perf_counter()
        outputs = backend.infer(feeds)
        reference.engine_seconds.append(time.perf_counter() - start)
        return outputs

    return run_twice(run, functools.partial(judge_outputs, reference, backend))


def judge_outputs(
    reference: Reference, backend: Backend, outputs: Mapping[str, np.ndarray] | Exception
) -> tuple[Case, list[Pair]]:
    """Compare what an engine gave, or the error that it gave instead, with the reference."""
    deployment, proof_input, metadata = reference.deployment, reference.input, backend.metadata
    bars = half.bars_of(half.precision_of(metadata, backend.computes_in))
    shape = 'x'.join(map(str, reference.feeds[metadata.spec.input_names[0]].shape))
    case = Case(proof_input.name, shape, proof_input.traced)
    expected = reference.results
    rows: tuple[TensorRow, ...] = ()
    try:
        if isinstance(outputs, Exception):
            raise outputs
        rows = (
            *_tensor_rows(reference, metadata, outputs, bars),
            *_form_rows(reference, metadata, outputs, bars),
        )
        if deployment.family.results_left_out(metadata.options):
            return dataclasses.replace(case, tensors=rows), []
        given = reference.feeds, reference.images, proof_input.rescale
        found = deployment.family.results(deployment.model, metadata, outputs, *given)
        if len(found) != len(expected):
            raise ShapeError(f'got results of {len(found)} images, expected {len(expected)}')
    except FAILURES as error:
        titles = [title for title, _ in proof_input.sources]
        failed = tuple(map(nothing_found, titles, expected, [error] * len(titles)))
        return dataclasses.replace(case, tensors=rows, detections=failed), []
    detections = match_images(reference, metadata, found, bars)
    if bars and not rows:
        rows = _half_rows(deployment, expected, found, bars)
    title = title_of(type(backend).__name__)
    return dataclasses.replace(case, tensors=rows, detections=detections), _pictures(reference, found, title)


def match_images(
    reference: Reference, metadata: Metadata, found: Sequence[Any], bars: HalfBars | None
) -> tuple[DetectionRow, ...]:
    """Return level 3 of one case: the results of every image, matched by the bars of its precision.

    Args:
        reference: of the input.
        metadata: of the file.
        found: results of the engine on trial per image.
        bars: of half precision or INT8; None for float32.
    """
    task = reference.deployment.family.task
    judged = bars.of_task(task) if bars else {}
    match, capacity = task_module(task).match_detections, metadata.postprocess.get('max_per_img')
    return tuple(
        match(
            title,
            wanted,
            got,
            capacity=capacity,
            beyond=lambda index=index: reference.longer[index],
            near_ties=lambda index=index: (results[index] for results in reference.near_ties),
            **judged,
        )
        for index, ((title, _), wanted, got) in enumerate(
            zip(reference.input.sources, reference.results, found, strict=True)
        )
    )


def _form_rows(
    reference: Reference, metadata: Metadata, outputs: Mapping[str, np.ndarray], bars: HalfBars | None
) -> list[TensorRow]:
    """Return what a graph that gives results breaks of its contract besides the results themselves."""
    if 'labels' not in metadata.spec.output_names:
        return []
    family, model = reference.deployment.family, reference.deployment.model
    rows = full_form.order_rows(outputs, family.num_classes(model))
    if caps := {name: metadata.options[name] for name in LIMITS if metadata.options.get(name)}:
        slack = bars.score if bars else DEFAULT_RTOL
        rows += full_form.count_rows(outputs, reference.ask('candidate_bounds', slack, **caps))
    return rows


def _half_rows(
    deployment: Deployment, expected: Sequence[Any], found: Sequence[Any], bars: HalfBars
) -> tuple[TensorRow, ...]:
    """Return cosines of a form that gives results only: of the matched ones."""
    task = deployment.family.task
    pair_up = task_module(task).pair_up
    rows: list[TensorRow] = []
    for index, (wanted, got) in enumerate(zip(expected, found, strict=True)):
        pairs = pair_up(wanted, got, **bars.of_task(task)).matched
        named = half.matched_rows(wanted, got, pairs, bars.cosine)
        several = f' of image {index}' if len(expected) > 1 else ''
        rows += [dataclasses.replace(row, tensor=row.tensor + several) for row in named]
    return tuple(rows)


def _tensor_rows(
    reference: Reference, metadata: Metadata, outputs: Mapping[str, np.ndarray], bars: HalfBars | None
) -> tuple[TensorRow, ...]:
    """Return level 2 of one case; forms that give detections have none."""
    if all(tensor.compare != 'values' for tensor in metadata.spec.outputs):
        return ()
    family, model = reference.deployment.family, reference.deployment.model
    chosen = {name: value for name, value in family.written(metadata.options).items() if name != 'form'}
    slack = half.RTOL if bars else DEFAULT_RTOL
    expected = reference.ask('reference_tensors', metadata.form, **chosen)
    ties_rtol = half.CHOICE_RTOL if bars else DEFAULT_RTOL
    expected = family.choose_as(model, reference.feeds, outputs, expected, ties_rtol)
    outputs = without_ties(expected, outputs, reference.ask('interchangeable_zeros', **chosen), slack)
    rows = compare_tensors(expected, outputs, metadata.spec)
    return tuple(half.judge(rows, bars.cosine) if bars else rows)


def _pictures(reference: Reference, found: Sequence[Any], engine: str) -> list[Pair]:
    """Return both engines' results for the report, but those at the default of an optional input."""
    one = reference.input
    if one.left_out:
        return []
    matched = zip(one.sources, one.images, reference.results, found, strict=True)
    return [_picture(*sides, one.rescale, engine) for sides in matched]


def _picture(
    source: tuple[str, np.ndarray],
    image: PreparedImage,
    reference: Detections,
    candidate: Detections,
    rescaled: bool,
    engine: str,
) -> Pair:
    """Bring both engines' boxes to pixels of the original picture."""
    if not rescaled:
        reference, candidate = reference.scaled(image.scale_factor), candidate.scaled(image.scale_factor)
    title = f'{source[0]}, input {image.tensor.shape[1]}x{image.tensor.shape[2]}'
    return Pair(title, source[1], reference, candidate, engine)


def timing(reference: Reference, backend: Backend) -> dict[str, float]:
    """Return median milliseconds of both engines on one input, interleaved.

    What the proof measured already counts; nothing runs again where that took long.
    """
    family, deployment = reference.deployment.family, reference.deployment
    feeds = {name: array for name, array in reference.feeds.items() if name in backend.spec.input_names}
    runs = (
        lambda: family.reference_detections(deployment.model, reference.images, False),
        lambda: backend.infer(feeds),
    )
    known = ([reference.seconds] * bool(reference.seconds), list(reference.engine_seconds))
    begin = time.perf_counter() - sum(map(sum, known))
    while min(map(len, known)) < TIMED_RUNS:
        if all(known) and time.perf_counter() - begin > TIMED_S:
            break
        for seconds, run in zip(known, runs, strict=True):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    titles = 'PyTorch (network and post-processing)', f'{backend.engine} (graph)'
    return {
        name: round(statistics.median(seconds) * 1e3, 2) for name, seconds in zip(titles, known, strict=True)
    }
