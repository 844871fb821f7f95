"""Recording: run the user's test path on samples and keep every call of the parts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.base.cli import tracked
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.base.source_code import LIBRARIES, is_ours, is_users_file
from mmdeploy_ext.proving.parts.arrays import Entered, recorded_arrays, stacks_of
from mmdeploy_ext.proving.parts.part import Part, Tree, arguments_of, intercepted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType


# Random numbers in a part: the line that draws them, and constants to replace them.


SEED = 0
DRAWING = (
    'bernoulli', 'cauchy', 'dropout', 'exponential', 'geometric', 'log_normal', 'multinomial', 'normal',
    'rand', 'rand_like', 'randint', 'randint_like', 'randn', 'randn_like', 'random', 'randperm', 'uniform',
)  # fmt: skip
"""Names of PyTorch's random functions; a last underscore writes into the first argument."""


@contextlib.contextmanager
def seeded(is_seeded: bool = True) -> Iterator[None]:
    """Inside the block PyTorch, NumPy and Python use one seed; afterwards they continue as before."""
    if not is_seeded:
        yield
        return
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    random.seed(SEED)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


class _Constants(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(function, '__name__', ''), dict(kwargs or {})
        state = torch._C._get_tracing_state()
        if state is None or name.rstrip('_') not in DRAWING:
            return function(*args, **kwargs)
        writes = name.endswith('_')
        torch._C._set_tracing_state(None)
        try:
            drawn = function(args[0].clone(), *args[1:], **kwargs) if writes else function(*args, **kwargs)
        finally:
            torch._C._set_tracing_state(state)
        return args[0].zero_().add_(drawn) if writes else drawn  # `copy_` has no ONNX form


@contextlib.contextmanager
def random_constants(is_seeded: bool) -> Iterator[None]:
    """Inside the block random numbers use one seed and are constants of a trace."""
    if not is_seeded:
        yield
        return
    with seeded(), _Constants():
        yield


def place_of_draw(run: Callable[[], Any]) -> str:
    """Return FILE:LINE of the first random draw in `run`, if possible in user code; or ''."""
    return _first_draw(run, is_users_file) or _first_draw(run, _is_of_library)


def _is_of_library(path: Path) -> bool:
    return not is_ours(path) and not {*LIBRARIES} & {*path.parts}


def _first_draw(run: Callable[[], Any], is_watched: Callable[[Path], bool]) -> str:
    before, place, found = _states(), '', ''

    @functools.cache
    def watches(file: str) -> bool:
        return Path(file).is_file() and is_watched(Path(file).resolve())

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal place, found
        file = frame.f_code.co_filename
        if found or not watches(file):
            return None
        if place and _states() != before:
            found = place
        place = f'{file}:{frame.f_lineno}'
        return watch

    tracer = sys.gettrace()
    sys.settrace(watch)
    try:
        run()
    finally:
        sys.settrace(tracer)
    return found or (place if _states() != before else '')


def _states() -> tuple[bytes, Any, Any]:
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), (name, keys.tobytes(), *rest), random.getstate()


RESULT = 'result'
"""First word of the names of results: 'result', 'result.0', 'result.all_cls_scores'."""


@dataclasses.dataclass(frozen=True)
class StepCall:
    """One call of a step.

    Attributes:
        arguments: copies of the arguments, by parameter.
        result: copy of the result.
        stacks: key -> array of the metas among the arguments, see `arrays.stacks_of`.
        entered: arrays that became tensors inside.
        changed: arguments changed in place.
    """

    arguments: Tree
    result: Tree
    stacks: dict[str, np.ndarray]
    entered: tuple[Entered, ...]
    changed: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PartCall:
    """One run of a part: a call of each step, in order."""

    sample: int
    number: int
    steps: tuple[StepCall, ...]

    @property
    def title(self) -> str:
        return f'sample {self.sample}' + (f', call {self.number}' if self.number else '')


@dataclasses.dataclass
class Recording:
    """The run of a test path over samples.

    Attributes:
        calls: part -> its calls, in order.
        results: result of the test path per sample.
    """

    calls: dict[Part, list[PartCall]]
    results: list[Any]


def named(result: Any) -> dict[str, Any]:
    """Return a result as a dict with a name per tensor."""
    return {RESULT: result}


def record(
    model: torch.nn.Module,
    parts: Sequence[Part],
    samples: Sequence[Any],
    run: Callable[[torch.nn.Module, Any], Any],
    is_seeded: bool = False,
) -> Recording:
    """Run the test path on samples and keep the calls of the parts.

    Args:
        model: the user's model; running changes its memory.
        parts: parts of it.
        samples: in order.
        run: (model, sample) -> the result of the test path.
        is_seeded: each sample, and each step of a part, restarts from one seed.

    Raises:
        UsageError: a part is not called, or its steps are not called in turn.
    """
    recorder = _Recorder(parts, is_seeded)
    results = []
    with intercepted(model, recorder.handlers), torch.no_grad():
        for index, sample in enumerate(tracked(samples, len(samples), 'samples')):
            recorder.sample = index
            with seeded(is_seeded):
                results.append(_copied(run(model, sample)))
    for part, calls in recorder.calls.items():
        if not calls:
            raise UsageError(f'--parts {part.text}: the test path does not call it')
    return Recording(recorder.calls, results)


def _copied(result: Any) -> Any:
    return Tree.of(result).copied().nested()


class _Recorder:
    def __init__(self, parts: Sequence[Part], is_seeded: bool) -> None:
        self.is_seeded = is_seeded
        self.calls: dict[Part, list[PartCall]] = {part: [] for part in parts}
        self.open: dict[Part, list[StepCall]] = {part: [] for part in parts}
        self.sample = 0
        self.handlers = {
            step: functools.partial(self.handle, part, index)
            for part in parts
            for index, step in enumerate(part.steps)
        }

    def handle(
        self,
        part: Part,
        index: int,
        original: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> Any:
        step = part.steps[index]
        if index != len(self.open[part]):
            expected = part.steps[len(self.open[part])].text
            raise UsageError(
                f'--parts {part.text}: the test path calls {step.text} where {expected} was expected; the '
                'steps of a part must be called in order. Export them as separate parts'
            )
        given = Tree.of(arguments_of(original, args, kwargs))
        arguments = given.copied()
        stacks = stacks_of(arguments.nested())
        with recorded_arrays(stacks) as entered, seeded(self.is_seeded):
            result = original(*args, **kwargs)
        changed = tuple(
            name for name, tensor in given.tensors.items() if not same_values(tensor, arguments.tensors[name])
        )
        kept = Tree.of(named(result)).copied()
        self.open[part].append(StepCall(arguments, kept, stacks, tuple(entered), changed))
        if index == len(part.steps) - 1:
            number = sum(call.sample == self.sample for call in self.calls[part])
            self.calls[part].append(PartCall(self.sample, number, tuple(self.open[part])))
            self.open[part] = []
        return result


def same_values(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have equal values; shapes may differ by axes of size 1."""
    if first.numel() != second.numel() or first.dtype != second.dtype:
        return False
    first, second = first.detach().reshape(-1), second.reshape(-1)
    if first.is_floating_point():
        return bool(torch.equal(first.nan_to_num(), second.nan_to_num()))
    return bool(torch.equal(first, second))
