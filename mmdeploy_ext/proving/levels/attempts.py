"""Runs of engines: errors that make a failed case, and times."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import one_line
from mmdeploy_ext.proving.results import DetectionRow

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURES = (ValueError, LookupError, RuntimeError, ArithmeticError)
"""Errors of an engine, or of decoding its outputs, that make a failed case and do not end the proof."""


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
