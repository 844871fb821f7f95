"""One input on an engine, twice: where the second run gives something else, one of both is wrong."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.proving.enough import AGAIN
from mmdeploy_ext.proving.results import DetectionRow
from mmdeploy_ext.proving.tensors import same_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from mmdeploy_ext.proving.results import Case

FAILURES = (ValueError, IndexError, RuntimeError)
"""What an engine, or what decodes its outputs, may raise: a failed case, not an exception."""


def run_twice(
    run: Callable[[], Any],
    judge: Callable[[Any], tuple[Case, list[Any]]],
    outputs: Callable[[Any], Mapping[str, np.ndarray]] = lambda found: found,
) -> tuple[list[Case], list[Any]]:
    """Run an engine twice on one input and judge what it gave.

    Args:
        run: gives the result of one run.
        judge: of a result, or of the exception that the engine raised instead: a case, and pictures.
        outputs: of a result, by name.

    Returns:
        One case, or two where the second run did not give the same bits; pictures of the first.
    """
    first = attempt(run)
    case, pictures = judge(first)
    if isinstance(first, Exception):
        return [case], pictures
    second = attempt(run)
    if not isinstance(second, Exception) and same_bits(outputs(first), outputs(second)):
        return [case], pictures
    again, _ = judge(second)
    return [case, dataclasses.replace(again, name=again.name + AGAIN)], pictures


def attempt(run: Callable[[], Any]) -> Any:
    """Return what a run gives, or the exception that it raises: an engine that fails is judged as such."""
    try:
        return run()
    except FAILURES as error:
        return error


def nothing_found(title: str, wanted: Any, error: Exception) -> DetectionRow:
    """Return the row of an image or sweep whose outputs gave no detections at all, but an error."""
    reason = f'no detections: {one_line(error)[:200]}'
    return DetectionRow(title, len(wanted), 0, len(wanted), 0, 0.0, 1.0, False, reason, broken=True)


class Clock:
    """Counts the seconds of runs, by the engine that runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def run(self, who: str, run: Callable[[], Any]) -> Any:
        """Return what a run gives; one that fails does not count."""
        start = time.perf_counter()
        found = run()
        self.seconds.setdefault(who, []).append(time.perf_counter() - start)
        return found

    def medians(self, *who: str) -> dict[str, float]:
        """Return engine -> median milliseconds, where all of them ran.

        The first run does not count: it computes what later ones keep.
        """
        known = {one: self.seconds[one] for one in who if one in self.seconds}
        found = {one: round(statistics.median(runs[1:] or runs) * 1e3, 2) for one, runs in known.items()}
        return found if len(found) == len(who) else {}
