"""The interface of an engine, which imports none; runs: their errors, times, and records of them."""

from __future__ import annotations

import abc
import contextlib
import contextvars
import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any, Self

from mmdeploy_ext.core.errors import InferenceError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.spec import GraphSpec


FAILURES = (ValueError, LookupError, RuntimeError, ArithmeticError)
"""Errors of an engine, or of decoding its outputs, that make a failed case and do not end the proof."""
FEED_CHECKS: dict[str, Callable[[Metadata, Mapping[str, np.ndarray]], None]] = {}
"""Name of a family -> check of sizes that its graphs cannot take, although their contract allows them.

`Backend.infer` calls it with the metadata and the feeds of a file of the family; it raises ShapeError. The
`runtime` module of a family registers it; a program that runs the file without importing that module, which
decodes the outputs, runs it unchecked.
"""


class Backend(abc.ABC):
    """One network on one engine; a context manager. `registry.build_backend` makes one.

    Attributes:
        engine: name of the engine, such as 'onnxruntime', for messages and figures.
        spec: contract of the network; set by `activate`, or, of the backend of PyTorch, from the start;
            `deactivate` leaves it.
        metadata: metadata of the file; None before `activate`, and if the network did not come from a file.
        computes_in: 'fp16' or 'bf16' if the engine computes with less precision than the dtypes of the file,
            else ''.
    """

    engine: str
    spec: GraphSpec
    metadata: Metadata | None = None
    computes_in: str = ''

    @abc.abstractmethod
    def activate(self) -> None:
        """Load the network and set `spec`.

        EngineError or ModelFileError when that is not possible; InferenceError when a GPU has no room for it.
        """

    @abc.abstractmethod
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the network on feeds that `infer` has checked; return output name -> array, in any order.

        Inputs with a default may be missing among the feeds: an engine that needs them fills them in.
        Users call `infer`. InferenceError: the network was freed, or the engine failed.
        """

    def deactivate(self) -> None:
        """Free the network if it is active; a backend that keeps it, as that of PyTorch, does nothing."""
        return

    def select_inputs(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the feeds that are inputs of the active network, the arrays themselves.

        Other exported forms of a model ('full', 'raw', ...) have further inputs, which `infer` refuses.
        """
        return {name: array for name, array in feeds.items() if name in self.spec.input_names}

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the network: input name -> array, to output name -> array in spec order.

        Feeds have the dtypes and shapes that the spec states; an input with a default may be left out.
        A float32 feed is rounded to float16 if the spec states float16, and float16 outputs are returned as
        float32.

        Raises:
            ShapeError: the spec does not allow the feeds (a name, dtype or shape, or a number that has to be
                positive; the same on every engine), a check of `FEED_CHECKS` or the engine refuses a size, or
                the engine gave no array for an output of the spec.
            InferenceError: the network is not active, or the engine failed; a module of PyTorch raises its
                own errors.
        """
        if not hasattr(self, 'spec'):
            raise InferenceError(f'{self.engine} is not active: use it in a with block, or call activate()')
        feeds = self.spec.rounded(feeds)
        self.spec.check_feeds(feeds)
        if self.metadata is not None and self.metadata.family in FEED_CHECKS:
            FEED_CHECKS[self.metadata.family](self.metadata, feeds)
        outputs = self.run(feeds)
        missing = [name for name in self.spec.output_names if name not in outputs]
        if missing:
            raise ShapeError(f'{self.engine} gave no {missing}; it gave {sorted(outputs)}')
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
        import numpy as np

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


def attempt(run: Callable[[], Any]) -> Any:
    """Return the result of a run, or the exception that it raises if that is one of `FAILURES`."""
    try:
        return run()
    except FAILURES as error:
        return error


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
