"""Findings of a verdict, or of its JSON, as tests look at them: graphs, checks, inputs, drives."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any


def findings_of(verdict: Any, level: str = '') -> list[SimpleNamespace]:
    """Return the findings of a level, or all: `subject`, `passed`, `text`, `reason`, and their figures."""
    plain = verdict if isinstance(verdict, dict) else dataclasses.asdict(verdict)
    return [
        SimpleNamespace(**{**finding['figures'], **finding, 'reason': finding['text']})
        for finding in plain['findings']
        if level in ('', finding['level'])
    ]


def graphs_of(verdict: Any) -> list[SimpleNamespace]:
    """Return the comparisons with fresh exports: `name`, `equal`, `text`, `nodes`, `differences`."""
    return findings_of(verdict, 'file')


def checks_of(verdict: Any) -> list[SimpleNamespace]:
    """Return the checks of the file: `name`, `passed`, `detail`."""
    found = findings_of(verdict, 'surroundings')
    others = ('preprocessing', 'untraced')
    checks = [check for check in found if check.subject not in others and not hasattr(check, 'installed')]
    return [SimpleNamespace(name=check.subject, passed=check.passed, detail=check.text) for check in checks]


def preprocessing_of(verdict: Any) -> SimpleNamespace:
    """Return what was found of the preprocessing: `passed`, `text`, `samples`, `differences`."""
    (found,) = (one for one in findings_of(verdict, 'surroundings') if one.subject == 'preprocessing')
    return found


def cases_of(verdict: Any) -> list[SimpleNamespace]:
    """Return the inputs: `name`, `input_shape`, `traced`, `passed`, `failures`, `tensors`, `detections`."""
    cases: dict[int, SimpleNamespace] = {}
    for row in findings_of(verdict, 'outputs'):
        if not hasattr(row, 'input'):
            continue
        empty = dict(tensors=[], detections=[], substituted=[], inner=[], failures=[], passed=True)
        fresh = SimpleNamespace(name=row.input, input_shape=row.input_shape, traced=row.traced, **empty)
        case = cases.setdefault(row.case, fresh)
        kinds = dict(tensor='tensors', image='detections', substituted='substituted', inner='inner')
        for figure, kind in kinds.items():
            if hasattr(row, figure):
                getattr(case, kind).append(row)
        if not row.passed:
            case.passed = False
            case.failures.append(f'{row.subject}: {row.text}')
    return list(cases.values())


def sequence_of(verdict: Any) -> list[SimpleNamespace]:
    """Return the drives: `title`, `passed`, `text`, the figures of `SequenceRow`, and `series`."""
    series = verdict['series'] if isinstance(verdict, dict) else verdict.series
    rows = [row for row in findings_of(verdict, 'outputs') if hasattr(row, 'frames')]
    for row in rows:
        row.title, row.series = row.subject, series[row.subject]
    return rows


def matched_of(verdict: Any) -> int:
    """Return how many results were matched, of all inputs."""
    return sum(row.matched for case in cases_of(verdict) for row in case.detections)
