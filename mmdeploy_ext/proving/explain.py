"""Is a difference rounding? Float64, ties at limits, PyTorch from the file's tensors; imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.arrays import ArrayDistance
from mmdeploy_ext.base.errors import one_line
from mmdeploy_ext.runtime.tasks import match, match_bars, task_module
from mmdeploy_ext.spec.comparison import DRAWS, ROUNDINGS, compare_named, compare_tensors
from mmdeploy_ext.spec.matching import Ties, matched_rows
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mmdeploy_ext.proving.subject import Sample, Started, Step, Subject
    from mmdeploy_ext.spec.comparison import Rounding
    from mmdeploy_ext.spec.results import Case, DetectionRow, TensorRow

    Run = Callable[[], Sequence[Any]]


ROUNDED = 5e-3
"""Largest difference, relative to the largest value, that rounded factors (TF32, fp16) explain."""
MOST_AXES, MOST_IMAGES = 5, 4
"""Limits of axes, and of images of a batch, for trying all orders."""
EXACT = 1e-5
"""Largest relative difference that the order of float32 sums explains; beyond it an output is wrong."""


def rounding_of(
    module: Any, reference: Mapping[str, np.ndarray], run: Callable[[], Mapping[str, np.ndarray]]
) -> Rounding:
    """Return the function that runs a module in float64 and returns float32's distances.

    Each value has the largest distance of `reference` and several draws. Tensors of another shape have
    distance 0; a failed run returns none.
    """
    from mmdeploy_ext.proving.float64 import distance_of, in_float64

    @functools.cache
    def results_of(seed: int | None) -> Mapping[str, np.ndarray]:
        try:
            with in_float64(module, seed):
                return run()
        except Exception:  # an operator or code for float32 only
            return {}

    def distances(draws: int) -> dict[str, np.ndarray]:
        exact = results_of(None)
        found = {name: distance_of(reference[name], exact[name]) for name in reference if name in exact}
        for drawn in map(results_of, range(draws) if exact else ()):
            for name in found.keys() & drawn.keys():
                if found[name].shape == exact[name].shape == drawn[name].shape:
                    found[name] = np.maximum(found[name], distance_of(drawn[name], exact[name]))
        return found

    return distances


def draws_of(
    module: Any,
    run: Callable[[int | None], Any],
    seeds: Iterable[int | None] = range(DRAWS),
    plain: bool = False,
) -> Iterator[Any]:
    """Yield what `run` returns in draws of float32, or in float64 (None); `plain`: also before each."""
    from mmdeploy_ext.proving.float64 import in_float64

    for seed in seeds:
        for context in (contextlib.nullcontext(), in_float64(module, seed))[not plain :]:
            try:
                with context:
                    result = run(seed)
            except Exception:  # an operator or code for float32 only
                continue
            yield result


def tensor_rows(
    subject: Subject, sample: Sample, want: Step, got: Step, state: Any
) -> tuple[Step, Step, list[TensorRow]]:
    """Align both steps and compare their tensors; float64 tells what is rounding."""
    ran = got
    want, got, rows = subject.align(sample, want, got)
    sides, rows = (want.tensors, got.tensors), [*rows]
    rounding = (lambda draws: want.rounding) if want.rounding else None
    if subject.module is not None and sample.mode != 'free':  # the drift of an own memory is no rounding
        rounding = rounding_of(subject.module, sides[0], lambda: subject.tensors(sample, state, ran))
    if any(sides) and subject.spec is None:
        rows += compare_named(*sides, subject.rtol, rounding=rounding, bars=subject.bars)
    elif any(sides):
        rows += compare_tensors(*sides, subject.spec, rounding, subject.bars)
    rows = [_diagnosed(row, *sides, subject.is_foreign) for row in rows]
    return want, got, [*rows, *got.rows]


def matched(
    subject: Subject,
    titles: Sequence[str],
    want: Sequence[Any],
    got: Sequence[Any],
    run: Run | None = None,
    drawn: Callable[[int | None], Sequence[Any]] | None = None,
    **bars: float,
) -> tuple[DetectionRow, ...]:
    """Match results title by title.

    - `run`: computes PyTorch's again, to find ties at its limits.
    - `drawn`: the same in float64 or a draw, to find its rounding; `run` if None.
    """
    rows: list[DetectionRow] = []
    task = task_module(subject.task)
    if subject.module is None or not hasattr(task, 'pair_up'):  # of maps
        run = None
    for index, (title, *sides) in enumerate(zip(titles, want, got, strict=True)):
        settings = dict(bars)
        if run is not None:
            settings['tied'] = _ties(subject, task, sides, run, index, bars)
        row = match(subject.task, title, *sides, subject.bars, **settings)
        is_rounded = run is not None and subject.bars.is_float32
        is_rounded = is_rounded and 'rounding' in inspect.signature(task.pair_up).parameters
        if is_rounded and row.outside and not row.passed and not row.broken:
            for rounding in _roundings(subject, task, sides[0], drawn or (lambda _: run()), index):
                row = match(subject.task, title, *sides, subject.bars, **settings, rounding=rounding)
                if row.passed:
                    break
        rows.append(row)
    return tuple(rows)


def _roundings(
    subject: Subject, task: Any, expected: Any, run: Callable[[int | None], Sequence[Any]], index: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield `rounding` of `matching.pair_lists`, with one more draw each time."""
    largest: dict[str, np.ndarray] = {}
    for drawn in draws_of(subject.module, lambda seed: run(seed)[index], (None, *range(DRAWS))):
        pairing = task.pair_up(expected, drawn)
        rows = [*pairing.matched, *pairing.outside]
        if len(rows) < max(len(expected.scores), len(drawn.scores)):
            continue  # a memory was lost or another result chosen, which is no rounding
        for title in pairing.gaps.keys() - {'score'}:
            own = np.zeros(len(expected.scores))
            own[rows] = ROUNDINGS * pairing.gaps[title]
            largest[title] = np.maximum(largest.get(title, 0), own)
        yield largest


def _ties(
    subject: Subject, task: Any, sides: Sequence[Any], run: Run, index: int, bars: Mapping[str, float]
) -> Ties:
    def without() -> Any:
        from mmdeploy_ext.exporting.substitution import without_limits

        with without_limits(subject.module):
            return run()[index]

    pairing = {name: bar for name, bar in bars.items() if name != 'score_thr'}
    return Ties(sides, without, functools.partial(task.pair_up, **pairing), subject.settings)


def explained(subject: Subject, case: Case, sample: Sample, got: Step, started: Started | None) -> Case:
    """Add what PyTorch computes from the file's own tensors, part by part."""
    if started is None:
        return case
    rows, notes, substituted, inner = case.tensors, started.notes, (), []
    if started.tensors[0]:
        rounding = rounding_of(subject.module, started.tensors[0], started.again)
        rows = (*rows, *compare_named(*started.tensors, DEFAULT_RTOL, rounding=rounding))
    if started.results is not None:
        try:
            want = started.results()
        except Exception as error:  # the user's code may need more than the file has
            notes = (*notes, f"your code does not accept the file's tensors: {one_line(error)[:200]}")
        else:
            if None not in want:
                bars = getattr(task_module(subject.task), 'ONE_TO_ONE', {})
                substituted = matched(subject, sample.titles, want, got.results, started.results, **bars)
    for index, (name, title, *sides) in enumerate(started.between()):
        task = task_module(name)
        bars = getattr(task, 'ONE_TO_ONE', {})
        tied = _ties(subject, task, sides, lambda: [one[2] for one in started.between()], index, bars)
        inner.append(task.match_detections(title, *sides, tied=tied, **bars))
    return dataclasses.replace(
        case,
        tensors=rows,
        substituted=substituted,
        inner=tuple(inner),
        whole=started.whole,
        notes=(*case.notes, *notes),
    )


def cosine_rows(subject: Subject, want: Sequence[Any], got: Sequence[Any]) -> list[TensorRow]:
    """Below float32, without tensors: cosines of matched results."""
    rows, bars = [], subject.bars
    for index, sides in enumerate(zip(want, got, strict=True)):
        pairing = task_module(subject.task).pair_up(*sides, **match_bars(subject.task, bars))
        suffix = f' of image {index}' if len(want) > 1 else ''
        found = matched_rows(*sides, pairing.matched, bars)
        rows += [dataclasses.replace(row, tensor=row.tensor + suffix) for row in found]
    return rows


# What may have happened to a wrong output.


def _diagnosed(
    row: TensorRow, expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], is_foreign: bool
) -> TensorRow:
    name = row.tensor.partition(' [')[0]
    if row.passed or name not in expected or name not in got:
        return row
    diagnosis = diagnose(expected[name], got[name], is_foreign)
    return dataclasses.replace(row, reason=f'{row.reason}; {diagnosis}') if diagnosis else row


def diagnose(expected: np.ndarray, got: np.ndarray, is_foreign: bool = True) -> str:
    """Describe a wrong output, or ''; `is_foreign`: of an engine that may round factors."""
    if _is_constant(got) and not _is_constant(expected):
        return f'every value is {got.flat[0]:g}'
    if order := _other_order(expected, got):
        return order
    if not is_foreign or expected.shape != got.shape or expected.size < 2 or got.dtype.kind != 'f':
        return ''
    if not (np.isfinite(expected).all() and np.isfinite(got).all()):
        return ''
    distance = ArrayDistance(got, expected)
    if distance.scale > 0 and EXACT < distance.max_rel <= ROUNDED:
        return (
            f"within {100 * distance.max_rel:.2g} % of PyTorch's largest value everywhere, which rounded "
            'factors would explain: check for TF32 or float16'
        )
    return ''


def _is_constant(array: np.ndarray) -> bool:
    """Whether an array of floats has several values, all equal and not NaN."""
    return array.size > 1 and array.dtype.kind == 'f' and bool((array == array.flat[0]).all())


def _other_order(expected: np.ndarray, got: np.ndarray) -> str:
    """Describe exchanged images of a batch or exchanged axes, or ''."""
    if expected.ndim != got.ndim or not 0 < expected.ndim <= MOST_AXES or got.dtype.kind != 'f':
        return ''
    if expected.shape == got.shape and 2 <= len(got) <= MOST_IMAGES:
        for order in list(itertools.permutations(range(len(got))))[1:]:  # the first is the order that it has
            if ArrayDistance(got[list(order)], expected).max_rel <= EXACT:
                return f'the images of the batch are in another order: {", ".join(map(str, order))}'
    for axes in list(itertools.permutations(range(got.ndim)))[1:]:
        moved = got.transpose(axes)
        if moved.shape == expected.shape and ArrayDistance(moved, expected).max_rel <= EXACT:
            return f'axes are in another order: {", ".join(map(str, axes))}'
    return ''


def exchanged(
    subject: Subject,
    titles: Sequence[str],
    want: Sequence[Any],
    got: Sequence[Any],
    rows: Sequence[DetectionRow],
) -> tuple[DetectionRow, ...]:
    """Say in failed rows of a batch that its results are right in another order of the images."""
    is_right = all(row.passed for row in rows)
    for images in itertools.permutations(got) if not is_right and 2 <= len(got) <= MOST_IMAGES else ():
        if all(row.passed for row in matched(subject, titles, want, images)):
            reason = 'the images of the batch are exchanged'
            return tuple(dataclasses.replace(row, reason=f'{row.reason}; {reason}') for row in rows)
    return tuple(rows)
