"""What the matching of a task overlooks: one of another package may accept anything, ours may have faults."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proving.tasks import TASKS, task_module

if TYPE_CHECKING:
    from collections.abc import Iterator

BEST = 10
"""Number of results that the matching of a task of this package is tried on; masks take time."""
HIGHER = 0.01
"""A difference of scores that no task of this package allows in float32."""


def blind_spots(task: str, results: Any) -> list[str] | None:
    """Return the differences of results that the matching of a task calls equal, such as 'other scores'.

    The results are matched with themselves, changed: without the best one, with half the scores, with other
    labels, and with other values in each further array of floats or truths that has a row per result. Tasks
    of this package do not compare all such arrays of all results (docs/proof.md tells which), so that theirs
    stay as they are: the `BEST` results are matched without the best one, with other labels, and with scores
    of `HIGHER` more. Panoptic results are not tried: [].

    Args:
        task: a key of `TASKS`, the tasks of this package, or the dotted name of a module.
        results: what PyTorch found in one image, sweep or frame, a data class of arrays, see `Scored`.

    Returns:
        [] if all changes are noticed; None if these results do not tell: there are none that count, or they
        cannot be changed.
    """
    if task == 'panoptic':  # segments have no scores, and labels are part of their numbers
        return []
    match = task_module(task).match_detections
    if task in TASKS and dataclasses.is_dataclass(results):
        results = results[np.argsort(-results.scores, kind='stable')[:BEST]]
    if not dataclasses.is_dataclass(results) or not match('unchanged', results, results).matched:
        return None
    if task in TASKS:
        higher = results.scores + np.float32(HIGHER)
        changes = [
            ('a missing result', results[1:]),
            (f'scores {HIGHER} higher', dataclasses.replace(results, scores=higher)),
            ('other labels', dataclasses.replace(results, labels=results.labels + 1)),
        ]
    else:
        changes = list(_changed(results))
    overlooked = []
    for name, changed in changes:
        with contextlib.suppress(ValueError, TypeError, LookupError, ArithmeticError):  # not called equal
            if match('changed', results, changed).passed:
                overlooked.append(name)
    return overlooked


def _changed(results: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name of a change and the results with it."""
    yield 'a missing result', results[1:]
    yield 'other scores', dataclasses.replace(results, scores=results.scores * np.float32(0.5))
    yield 'other labels', dataclasses.replace(results, labels=results.labels + 1)
    for field in dataclasses.fields(results):
        values = getattr(results, field.name)
        if field.name == 'scores' or not isinstance(values, np.ndarray):
            continue
        if values.shape[:1] == (len(results),) and values.dtype.kind in 'fb':
            changed_values = ~values if values.dtype.kind == 'b' else (values * 1.25 + 1).astype(values.dtype)
            yield f'other {field.name}', dataclasses.replace(results, **{field.name: changed_values})
