"""Is a difference rounding? Float64, ties at limits, PyTorch from the file's tensors; imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

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
