"""Random numbers in a part: the line that draws them, and constants to replace them."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.base.source_code import LIBRARIES, is_ours, is_users_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

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
