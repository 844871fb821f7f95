"""The files of a stream beside PyTorch's results of a drive, which are computed once."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proving.drive_run import SHORT_DRIVE
from mmdeploy_ext.proving.frames import output_spec
from mmdeploy_ext.spec.metadata import read_metadata
from proofs import run_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.runtime.frames import Frame, StreamState
    from mmdeploy_ext.spec.results import SequenceRow


class Replay:
    """The PyTorch model's results of a drive, computed once."""

    def __init__(self, detector: Any, frames: Sequence[Frame]) -> None:
        stepper = detector.family.reference(detector.model)
        self.moments = [(stepper.step(frame), stepper.state) for frame in frames]

    def reset(self) -> None:
        self.waiting = iter(self.moments)

    def step(self, frame: Frame) -> Any:
        result, self.state = next(self.waiting)
        return result


def rows(detector: Any, paths: Sequence[str], frames: Sequence[Frame]) -> Callable[[], SequenceRow]:
    """Return a function that runs the files beside PyTorch over frames."""
    replay, runner = Replay(detector, frames), detector.family.runner(paths, dict(threads=1))
    computed = [read_metadata(path) for path in paths]
    settings = dict(memory=detector.family.memory_spec(computed[-1].postprocess), length=SHORT_DRIVE)
    settings['task'] = detector.family.task
    return lambda: run_pair(replay, runner, frames, output_spec(computed), **settings)


def with_tensors(memory: StreamState | None, **change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Return a memory with changed tensors."""
    if memory is None:
        return None
    tensors = {name: change.get(name, np.array)(values) for name, values in memory.tensors.items()}
    return dataclasses.replace(memory, tensors=tensors)


def run_of(run: Callable[..., Any], change: Callable[..., Any]) -> Callable[..., Any]:
    """Return a runtime's `run` with (frame, memory) changed before it."""
    return lambda self, frame, memory: run(self, *change(frame, memory))


def with_outputs(run: Callable[..., Any], change: Callable[..., Any]) -> Callable[..., Any]:
    """Return a runtime's `run` whose outputs, copies, are changed after it."""

    def changed(self: Any, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        outputs = {name: np.array(values) for name, values in run(self, frame, memory).items()}
        change(outputs)
        return outputs

    return changed


def once_a_frame(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a runtime's `run` that computes the outputs of a frame, known by its name, once."""
    outputs: dict[str, Any] = {}

    def kept(self: Any, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        if frame.name not in outputs:
            outputs[frame.name] = run(self, frame, memory)
        return outputs[frame.name]

    return kept
