"""The only loop over the samples of a proof, and the judgement of one of them. Needs numpy only."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from mmdeploy_ext.base.cli import tracked
from mmdeploy_ext.base.errors import one_line
from mmdeploy_ext.engines.base import Clock, attempt
from mmdeploy_ext.proving.explain import cosine_rows, exchanged, explained, matched, tensor_rows
from mmdeploy_ext.spec.comparison import compare_named, failed_row, same_bits
from mmdeploy_ext.spec.results import Case, failed_detections
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from mmdeploy_ext.proving.subject import Sample, Step, Subject

AGAIN = 'the model returns different results when an input runs again at the end'
"""Reason of failure: another final result."""


def compare(subject: Subject) -> tuple[list[Case], list[str], Clock]:
    """Run PyTorch and the file on every sample, and one of them again.

    Returns cases, reasons beyond single rows, and times of 'reference' and of the mode, '' as 'file'.
    """
    cases, clock, kept, own = [], Clock(), None, {}
    for given, modes, sample, state, want in _wanted(subject, clock, 'proving'):
        if sample.alone:
            own = {}
        for mode in modes:
            sample = dataclasses.replace(sample, mode=mode)
            before = own.get(mode) if mode.startswith('free') else state
            run = functools.partial(subject.got, sample, before)
            got = attempt(functools.partial(clock.run, mode or 'file', run))
            case = judge(subject, sample, want, got, state)
            if given[1:] == (subject.again, subject.modes[0][0]) and mode == modes[0]:
                kept = given, want, got, case
            if (case := subject.judged(sample, want, got, case)) is not None:
                cases.append(case)
            own[mode] = subject.after(sample, want, got)
    return cases, [] if kept is None else _reasons_of_another_run(subject, *kept), clock


def ask(subject: Subject) -> None:
    """Run PyTorch alone on the samples of `compare`, and the same one again, for a recording."""
    again = None
    for given, _, _, _, _ in _wanted(subject, Clock(), 'asking'):
        if given[1:] == (subject.again, subject.modes[0][0]):
            again = given
    if again is not None:
        subject.want(subject.sample(*again), None)


def _wanted(subject: Subject, clock: Clock, title: str) -> Iterator[tuple[Any, ...]]:
    """Yield arguments of `sample`, the modes, the sample, PyTorch's memory before it and its step."""
    for modes in subject.modes:
        state, entries = None, subject.entries(modes[0])
        for index, entry in enumerate(tracked(entries, len(entries), title)):
            given = entry, index, modes[0]
            sample = subject.sample(*given)
            if sample.alone:
                state = None
            want = clock.run('reference', functools.partial(subject.want, sample, state))
            yield given, modes, sample, state, want
            state = want.state


def _reasons_of_another_run(
    subject: Subject, given: Any, first: Step, first_got: Step | Exception, case: Case
) -> list[str]:
    if isinstance(first_got, Exception) or not case.passed:
        return []
    sample = dataclasses.replace(subject.sample(*given), mode=given[-1])
    again, got = subject.want(sample, None), attempt(lambda: subject.got(sample, None))
    reasons = judge(subject, sample, again, got).failures[:1]
    sides = ('PyTorch', first, again), ('the file', first_got, got)
    for side, one, other in sides if not isinstance(got, Exception) else sides[:1]:
        if same_bits(one.probe, other.probe):
            continue
        rows = compare_named(one.probe, other.probe, DEFAULT_RTOL, bars=subject.bars)
        empty = [name for name, array in one.probe.items() if not array.size]
        if names := [row.tensor for row in rows if not row.passed and row.tensor not in empty]:
            reasons.append(f'outputs of {", ".join(names)} of {side}')
    return [f'{AGAIN} (state that runs change): {reason}' for reason in reasons]


def judge(
    subject: Subject,
    sample: Sample,
    want: Step,
    got: Step | Exception,
    state: Any = None,
) -> Case:
    """Compare one step of both sides, and explain what differs; `state` is PyTorch's memory before it."""
    case = Case(sample.name, sample.shape, sample.traced, counts=dict(want.counts))
    if isinstance(got, Exception):
        return _failed(subject, case, sample, want, got)
    beside = got.beside
    error = next((one for one in (got.results, beside) if isinstance(one, Exception)), None)
    has_results = want.results is not None and got.results is not None
    own = got if beside is None or error else beside
    started, run = None, None
    if has_results and subject.bars.is_float32 and not error:
        started, run = subject.on(sample, own), functools.partial(subject.results, sample, state)
    # first: a run in float64 changes the last step of a model
    case = explained(subject, case, sample, own, started)
    compared = attempt(lambda: tensor_rows(subject, sample, want, got, state))
    if isinstance(compared, Exception):
        return _failed(subject, case, sample, want, compared)
    want, got, rows = compared
    case = dataclasses.replace(case, tensors=(*rows, *case.tensors), counts={**want.counts, **own.counts})
    if error and has_results:
        return _failed(subject, case, sample, want, error)
    if not has_results:
        return case
    if not subject.bars.is_float32 and not rows:
        case = dataclasses.replace(case, tensors=tuple(cosine_rows(subject, want.results, got.results)))
    if beside is not None and run:
        engines = matched(subject, sample.titles, own.results, got.results, run, score_thr=0.0)
        named = (dataclasses.replace(row, image=f'{row.image}, against ONNX Runtime') for row in engines)
        case = dataclasses.replace(case, engines=tuple(named))
    detections = matched(subject, sample.titles, want.results, got.results, run, run)
    sides = want.results, got.results
    return dataclasses.replace(case, detections=exchanged(subject, sample.titles, *sides, detections))


def _failed(subject: Subject, case: Case, sample: Sample, want: Step, error: Exception) -> Case:
    """Return the case of a step that raised: all results are missing."""
    if want.results is None:
        first = next(iter(want.tensors.values()), None)
        row = failed_row(subject.all_outputs, one_line(error)[:300], first)
        return dataclasses.replace(case, tensors=(row,))
    sides = zip(sample.titles, want.results, strict=True)
    return dataclasses.replace(case, detections=tuple(failed_detections(*side, error) for side in sides))
