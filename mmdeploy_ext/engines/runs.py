"""Runs of files in ONNX Runtime, recorded while a block of code lasts: which file, its inputs, its outputs.

A kit (`mmdeploy_ext/kit`) needs what the runtime of a model feeds to each of its files. Outside of a block of
`record_runs`, and in threads that are started in it, nothing is kept.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a file.

    Attributes:
        path: path of the file.
        inputs: name -> copy of what it was fed.
        outputs: name -> copy of what it gave.
    """

    path: str
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


_runs: contextvars.ContextVar[list[Run] | None] = contextvars.ContextVar('mm2onnx_runs', default=None)


def is_recording() -> bool:
    """Return whether a block of `record_runs` is open, in this thread."""
    return _runs.get() is not None


def note_run(path: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Add a run of the file at a path to those that are recorded; inputs and outputs are arrays by name."""
    if (runs := _runs.get()) is not None:
        copies = ({name: np.array(array) for name, array in side.items()} for side in (inputs, outputs))
        runs.append(Run(path, *copies))


@contextlib.contextmanager
def record_runs() -> Iterator[list[Run]]:
    """Record the runs inside the block: a list to which each run is appended; an inner block has its own."""
    runs: list[Run] = []
    token = _runs.set(runs)
    try:
        yield runs
    finally:
        _runs.reset(token)
