"""One input on an engine, twice: where the second run gives something else, one of both is wrong."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.compare.tensors import same_bits
from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.proof.enough import AGAIN
from mmdeploy_ext.proof.results import DetectionRow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from mmdeploy_ext.proof.results import Case
    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult, StreamState, Sweep

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
    """Return the row of a sample whose outputs gave no detections at all.

    Args:
        title: of the image or sweep.
        wanted: detections of the reference.
        error: why.
    """
    reason = f'no detections: {one_line(error)[:200]}'
    return DetectionRow(title, len(wanted), 0, len(wanted), 0, 0.0, 1.0, False, reason, broken=True)


class Timed:
    """A stepper that counts the seconds of its steps."""

    def __init__(self, stepper: Stepper) -> None:
        """Keep the stepper."""
        self.stepper = stepper
        self.seconds: list[float] = []

    @property
    def state(self) -> StreamState | None:
        """See `Stepper.state`."""
        return self.stepper.state

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.stepper.state = state

    def reset(self) -> None:
        """Empty the memory."""
        self.stepper.reset()

    def step(self, frame: Frame | Sweep) -> StepResult:
        """Run one frame."""
        start = time.perf_counter()
        result = self.stepper.step(frame)
        self.seconds.append(time.perf_counter() - start)
        return result


def medians(**seconds: list[float]) -> dict[str, float]:
    """Return title -> median milliseconds, without the first run, which computes what later ones keep."""
    if not all(seconds.values()):
        return {}
    return {title: round(statistics.median(taken[1:] or taken) * 1e3, 2) for title, taken in seconds.items()}
