"""Levels 2 and 3 of pictures: files judged by what the unpatched model gives, which is computed once."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.options import LIMITS
from mmdeploy_ext.contract.spec import DEFAULT_RTOL
from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.engines import title_of
from mmdeploy_ext.proving import full_form, half
from mmdeploy_ext.proving.levels.run_twice import FAILURES, nothing_found, run_twice
from mmdeploy_ext.proving.results import Case, DetectionRow, Pair
from mmdeploy_ext.proving.rows import TensorRow
from mmdeploy_ext.proving.tasks import task_module
from mmdeploy_ext.proving.tensors import compare_tensors, without_ties

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.proving.half import HalfBars
    from mmdeploy_ext.proving.references import Reference

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
    bars = half.bars_of(backend.computes_in or metadata.precision)
    shape = 'x'.join(map(str, reference.feeds[metadata.spec.input_names[0]].shape))
    case, expected = Case(proof_input.name, shape, proof_input.traced), reference.results
    rows: tuple[TensorRow, ...] = ()
    try:
        if isinstance(outputs, Exception):
            raise outputs
        rows = (
            *_tensor_rows(reference, metadata, outputs, bars),
            *full_form.shape_rows(outputs, metadata.spec),
            *_form_rows(reference, metadata, outputs, bars),
        )
        if deployment.family.results_left_out(metadata.options):
            return dataclasses.replace(case, tensors=rows), []
        given = reference.feeds, reference.images, proof_input.rescale
        found = deployment.family.results(deployment.model, metadata, outputs, *given)
        if len(found) != len(expected):
            raise ShapeError(f'got results of {len(found)} images, expected {len(expected)}')
    except FAILURES as error:
        titles = zip(proof_input.sources, expected, strict=True)
        failed = tuple(nothing_found(title, wanted, error) for (title, _), wanted in titles)
        return dataclasses.replace(case, tensors=rows, detections=failed), []
    detections = match_images(reference, metadata, found, bars)
    if bars and not rows:
        rows = _half_rows(deployment, expected, found, bars)
    title = title_of(type(backend).__name__)
    return dataclasses.replace(case, tensors=rows, detections=detections), _pictures(reference, found, title)


def match_images(
    reference: Reference, metadata: Metadata, found: Sequence[Any], bars: HalfBars | None
) -> tuple[DetectionRow, ...]:
    """Return level 3 of one case: the results of every image, matched by the bars of its precision."""
    titles = [title for title, _ in reference.input.sources]
    capacity = metadata.postprocess.get('max_per_img')
    task = reference.deployment.family.task
    settings = bars.of_task(task) if bars else {}
    match = functools.partial(task_module(task).match_detections, capacity=capacity, **settings)
    return tuple(
        match(
            *sides,
            beyond=lambda index=index: reference.longer[index],
            near_ties=lambda index=index: (results[index] for results in reference.near_ties),
        )
        for index, sides in enumerate(zip(titles, reference.results, found, strict=True))
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
        rows += full_form.count_rows(outputs, reference.compute(family.candidate_bounds, slack, **caps))
    return rows


def _half_rows(
    deployment: Deployment, expected: Sequence[Any], found: Sequence[Any], bars: HalfBars
) -> tuple[TensorRow, ...]:
    """Return cosines of a form that gives results only: of the matched ones."""
    task, rows = deployment.family.task, []
    for index, sides in enumerate(zip(expected, found, strict=True)):
        pairs = task_module(task).pair_up(*sides, **bars.of_task(task)).matched
        several = f' of image {index}' if len(expected) > 1 else ''
        named = bars.matched_rows(*sides, pairs)
        rows += [dataclasses.replace(row, tensor=row.tensor + several) for row in named]
    return tuple(rows)


def _tensor_rows(
    reference: Reference, metadata: Metadata, outputs: Mapping[str, np.ndarray], bars: HalfBars | None
) -> tuple[TensorRow, ...]:
    """Return level 2 of one case; forms that give detections have none."""
    if all(tensor.compare != 'values' for tensor in metadata.spec.outputs):
        return ()
    family = reference.deployment.family
    options = {name: value for name, value in family.written(metadata.options).items() if name != 'form'}
    expected = reference.compute(family.reference_tensors, metadata.form, **options)
    zeros = reference.compute(family.interchangeable_zeros, **options)
    feeds = reference.feeds
    return compare_with_ties(reference.deployment, feeds, expected, outputs, zeros, metadata.spec, bars)


def compare_with_ties(
    deployment: Deployment,
    feeds: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    zeros: Mapping[str, np.ndarray],
    spec: GraphSpec,
    bars: HalfBars | None,
) -> tuple[TensorRow, ...]:
    """Compare tensors, where the choice among equal scores and zeros of ties may be the engine's.

    `zeros` are `ImageFamily.interchangeable_zeros`; `bars` are those of half precision, None for float32.
    """
    choice_rtol, rtol = (half.CHOICE_RTOL, half.RTOL) if bars else (DEFAULT_RTOL, DEFAULT_RTOL)
    expected = deployment.family.choose_as(deployment.model, feeds, outputs, expected, choice_rtol)
    rows = compare_tensors(expected, without_ties(expected, outputs, zeros, rtol), spec)
    return tuple(bars.judge(rows) if bars else rows)


def _pictures(reference: Reference, found: Sequence[Any], engine: str) -> list[Pair]:
    """Return both engines' results in pixels of the picture; not those at an optional input's default."""
    one, pairs = reference.input, []
    if one.left_out:
        return []
    columns = one.sources, one.images, reference.results, found
    for (title, picture), image, *sides in zip(*columns, strict=True):
        if not one.rescale:
            sides = [side.scaled(image.scale_factor) for side in sides]
        size = f'input {image.tensor.shape[1]}x{image.tensor.shape[2]}'
        pairs.append(Pair(f'{title}, {size}', picture, *sides, engine))
    return pairs


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
    medians = [round(statistics.median(seconds) * 1e3, 2) for seconds in known]
    return {'PyTorch (network and post-processing)': medians[0], f'{backend.engine} (graph)': medians[1]}
