"""A check for task authors: differences that matching overlooks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.tasks import task_module


def check_task(task: str, results: Any, compared: Sequence[str] = ()) -> list[str]:
    """Return the differences that a task's matching calls equal, such as 'other scores'."""
    match = task_module(task).match_detections
    results = results[np.argsort(-results.scores, kind='stable')]
    if not match('unchanged', results, results).matched:
        raise DataError('these results do not match themselves; pass results above the thresholds')
    overlooked = []
    for name, changed in _changed(results, compared):
        with contextlib.suppress(ValueError, TypeError, LookupError, ArithmeticError):  # not called equal
            if match('changed', results, changed).passed:
                overlooked.append(name)
    return overlooked


def _changed(results: Any, compared: Sequence[str]) -> Iterator[tuple[str, Any]]:
    yield 'a missing result', results[1:]
    yield 'other scores', dataclasses.replace(results, scores=results.scores * np.float32(0.9))
    yield 'other labels', dataclasses.replace(results, labels=results.labels + 1)
    for name in compared:
        values = getattr(results, name)
        other = ~values if values.dtype.kind == 'b' else (values * 1.25 + 1).astype(values.dtype)
        yield f'other {name}', dataclasses.replace(results, **{name: other})
