"""Runs an engine twice on an input: a second run that gives other outputs, or fails, is judged, too."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.printable import one_line
from mmdeploy_ext.proving.results import DetectionRow
from mmdeploy_ext.proving.tensors import same_bits
from mmdeploy_ext.proving.totals import SECOND_RUN

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    import numpy as np

    from mmdeploy_ext.proving.results import Case

FAILURES = (ValueError, LookupError, RuntimeError, ArithmeticError)
"""Errors of an engine, or of decoding its outputs, that make a failed case and do not end the proof."""


class SecondRuns:
    """Decides which inputs of a proof run a second time.

    Every input does, unless the engine knows what a run leaves behind for later ones (`Backend.repeat_key`):
    then the first input of each such key, and once one has not given the same bits, every input.
    """

    def __init__(self) -> None:
        self._repeated: set[Hashable] = set()
        self._differ = False

    def are_needed(self, key: Hashable | None) -> bool:
        """Return whether an input has to run a second time; `key` is its result of `Backend.repeat_key`.

        If that is None, which says that the engine does not know, it always has to.
        """
        return key is None or self._differ or key not in self._repeated

    def note(self, key: Hashable | None, equal: bool) -> None:
        """Note that an input with such a key ran twice; `equal` is whether its outputs had the same bits."""
        self._repeated.add(key)
        self._differ = self._differ or not equal


def run_twice(
    run: Callable[[], Any],
    judge: Callable[[Any], tuple[Case, list[Any]]],
    outputs: Callable[[Any], Mapping[str, np.ndarray]] = lambda result: result,
) -> tuple[list[Case], list[Any]]:
    """Run an engine twice on one input and judge the results.

    Args:
        run: returns the result of one run.
        judge: takes a result, or the exception of `FAILURES` that the run raised, and returns a case and what
            the report draws of it.
        outputs: returns the outputs of a result by name.

    Returns:
        One case, or two if the second run failed or did not give the same bits; and what the report draws of
        the first. There is no second run if the first failed.
    """
    first = attempt(run)
    case, pictures = judge(first)
    if isinstance(first, Exception):
        return [case], pictures
    second = attempt(run)
    if not isinstance(second, Exception) and same_bits(outputs(first), outputs(second)):
        return [case], pictures
    again, _ = judge(second)
    return [case, dataclasses.replace(again, name=again.name + SECOND_RUN)], pictures


def attempt(run: Callable[[], Any]) -> Any:
    """Return the result of a run, or the exception that it raises if that is one of `FAILURES`."""
    try:
        return run()
    except FAILURES as error:
        return error


def failed_detections(title: str, expected: Any, error: Exception) -> DetectionRow:
    """Return the row of an image, sweep or frame, `title`, for which an error was raised, not detections.

    `expected` are PyTorch's detections, all of which are missing.
    """
    reason = f'no detections: {one_line(error)[:200]}'
    return DetectionRow(title, len(expected), 0, len(expected), 0, 0.0, 1.0, False, reason, broken=True)


class Clock:
    """Counts the seconds of runs, by the engine that runs.

    Attributes:
        seconds: name of an engine, any text -> seconds of each of its runs.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def run(self, engine: str, run: Callable[[], Any]) -> Any:
        """Call `run` and add its seconds to those of the engine; a run that raises does not count."""
        start = time.perf_counter()
        result = run()
        self.seconds.setdefault(engine, []).append(time.perf_counter() - start)
        return result

    def medians(self, *engines: str) -> dict[str, float]:
        """Return engine -> median milliseconds if all of `engines` ran, else {}.

        The first run does not count if there are others: it computes what later ones reuse.
        """
        if not all(engine in self.seconds for engine in engines):
            return {}
        runs = {engine: self.seconds[engine][1:] or self.seconds[engine] for engine in engines}
        return {engine: round(statistics.median(seconds) * 1e3, 2) for engine, seconds in runs.items()}
