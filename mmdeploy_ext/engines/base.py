"""The interface of an engine, and records and times of runs. Imports no engine."""

from __future__ import annotations

import abc
import contextlib
import contextvars
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import InferenceError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

    import numpy as np

    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.tensors import GraphSpec


FAILURES = (ValueError, LookupError, RuntimeError, ArithmeticError)
"""Errors of an engine or decoder that fail a case without ending the proof."""
FEED_CHECKS: dict[str, Callable[[Metadata, Mapping[str, np.ndarray]], None]] = {}
"""Family -> check by its `runtime` module of sizes that graphs refuse though the contract allows them.

`Backend.infer` calls it with metadata and feeds; it raises ShapeError.
"""


class Backend(abc.ABC):
    """One network on one engine; a context manager. Made by `registry.build_backend`.

    Attributes:
        spec: contract of the network; set by `activate` (PyTorch: from the start).
        metadata: of the file; None before `activate` or without a file.
        computes_in: 'fp16' or 'bf16' if the engine computes below the dtypes of the file, else ''.
    """

    engine: str
    spec: GraphSpec
    metadata: Metadata | None = None
    computes_in: str = ''

    @abc.abstractmethod
    def activate(self) -> None:
        """Load the network and set `spec`.

        EngineError or ModelFileError: it cannot be loaded. InferenceError: the GPU has no room.
        """

    @abc.abstractmethod
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run feeds that `infer` has checked; outputs by name in any order.

        Inputs with a default may be missing.
        """

    def deactivate(self) -> None:
        """Free the network if it is active; PyTorch keeps it."""
        return

    def select_inputs(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array for name, array in feeds.items() if name in self.spec.input_names}

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the network: input name -> array to output name -> array in spec order.

        Inputs with a default may be missing. float32 feeds are rounded to float16 where the spec has float16,
        and become pixels where it has uint8; float16 outputs come back as float32.

        Raises:
            ShapeError: the spec, a check of `FEED_CHECKS` or the engine refuses the feeds.
            InferenceError: the network is not active, or the engine failed. PyTorch raises its own errors.
        """
        if not hasattr(self, 'spec'):
            raise InferenceError(f'{self.engine} is not active: use it in a with block, or call activate()')
        feeds = self.spec.rounded(self.spec.with_required(feeds))
        self.spec.check_feeds(feeds)
        if self.metadata is not None and self.metadata.family in FEED_CHECKS:
            FEED_CHECKS[self.metadata.family](self.metadata, feeds)
        outputs = self.run(feeds)
        missing = [name for name in self.spec.output_names if name not in outputs]
        if missing:
            raise ShapeError(f'{self.engine} did not return {missing}; got {sorted(outputs)}')
        arrays = {name: outputs[name] for name in self.spec.output_names}
        return {
            name: array.astype('float32') if array.dtype == 'float16' else array
            for name, array in arrays.items()
        }

    def __enter__(self) -> Self:
        self.activate()
        return self

    def __exit__(self, *_: object) -> None:
        self.deactivate()


@dataclasses.dataclass(frozen=True)
class Run:
    path: str
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


_runs: contextvars.ContextVar[list[Run] | None] = contextvars.ContextVar('mm2onnx_runs', default=None)


def is_recording() -> bool:
    return _runs.get() is not None


def note_run(path: str, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    if (runs := _runs.get()) is not None:
        import numpy as np

        copies = ({name: np.array(array) for name, array in side.items()} for side in (inputs, outputs))
        runs.append(Run(path, *copies))


@contextlib.contextmanager
def record_runs() -> Iterator[list[Run]]:
    """Yield a list to which runs inside the block are appended."""
    runs: list[Run] = []
    token = _runs.set(runs)
    try:
        yield runs
    finally:
        _runs.reset(token)


def attempt(run: Callable[[], Any]) -> Any:
    """Result of `run`, or its exception if it is in `FAILURES`."""
    try:
        return run()
    except FAILURES as error:
        return error


class Clock:
    """Seconds of each run, by engine."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def run(self, engine: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = run()
        self.seconds.setdefault(engine, []).append(time.perf_counter() - start)
        return result

    def medians(self, *engines: str) -> dict[str, float]:
        """Engine -> median milliseconds if all ran, else {}; the first of several runs does not count."""
        import statistics

        if not all(engine in self.seconds for engine in engines):
            return {}
        runs = {engine: self.seconds[engine][1:] or self.seconds[engine] for engine in engines}
        return {engine: round(statistics.median(seconds) * 1e3, 2) for engine, seconds in runs.items()}
