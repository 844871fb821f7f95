"""Arrays of metas that enter torch inside a part, such as `lidar2img`: inputs of the graph."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.base.source_code import is_users_file

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from mmdeploy_ext.proving.parts.part import Tree

CREATORS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
"""Functions that bring arrays into torch, except `torch.from_numpy`."""
LEAST_VALUES = 3
"""Smaller integer arrays equal some meta by chance."""
DEEPEST = 2
"""Axes of a key's stack that code may index before torch: sample and camera."""
MARK = 0.05
"""Relative change of numbers that makes all arrays differ."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Source of an array: a key of the metas, stacked over samples, and an index into the stack."""

    key: str
    index: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Entered:
    """An array that entered torch.

    Attributes:
        array: a copy.
        sources: places in the metas with the same values, perhaps by chance.
        place: FILE:LINE of the user's code.
    """

    array: np.ndarray
    sources: tuple[Source, ...]
    place: str


def stacks_of(value: Any, stacks: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Return key -> array of the metas in a call's arguments, stacked over the dicts of a list."""
    stacks = {} if stacks is None else stacks
    if isinstance(value, list | tuple) and value and all(isinstance(entry, dict) for entry in value):
        for key in value[0]:
            if all(key in entry for entry in value):
                _add(stacks, str(key), [entry[key] for entry in value])
    elif isinstance(value, dict):
        for key, entry in value.items():
            _add(stacks, str(key), entry)
            stacks_of(entry, stacks)
    elif isinstance(value, list | tuple):
        for entry in value:
            stacks_of(entry, stacks)
    return stacks


def _add(stacks: dict[str, np.ndarray], key: str, value: Any) -> None:
    array = as_array(value)
    if array is not None and key not in stacks:
        is_marked = array.size >= LEAST_VALUES or (array.size and (array % 1 != 0).any())
        if is_marked:
            stacks[key] = array


def as_array(value: Any) -> np.ndarray | None:
    """Return numbers, nested or not, as an array; None for anything else, even tensors."""
    if isinstance(value, torch.Tensor | str | bytes | dict | None):
        return None
    if isinstance(value, list | tuple) and _holds_tensor(value):
        return None
    try:
        array = np.asarray(value)
    except Exception:
        return None
    return array if array.dtype.kind in 'fiu' else None


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_tensor, value))
    return isinstance(value, torch.Tensor)


def sources_of(array: np.ndarray, stacks: Mapping[str, np.ndarray]) -> tuple[Source, ...]:
    """Return all places in the metas with an array's values, in float64 or float32."""
    found = []
    for key, stack in stacks.items():
        for depth in range(min(DEEPEST, stack.ndim) + 1):
            for index in np.ndindex(stack.shape[:depth]):
                part = stack[index]
                if part.size == array.size and part.ndim <= array.ndim + 1 and _is_equal(part, array):
                    found.append(Source(key, index))
    return tuple(found)


def _is_equal(first: np.ndarray, second: np.ndarray) -> bool:
    first, second = first.reshape(-1), second.reshape(-1)
    return bool(
        np.array_equal(first, second) or np.array_equal(first.astype(np.float32), second.astype(np.float32))
    )


class _Creations(TorchFunctionMode):
    def __init__(self, enter: Callable[[np.ndarray, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.enter = enter

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = function(*args, **kwargs)
        if function not in CREATORS:
            return result
        place = 1 if function is torch.Tensor.new_tensor else 0
        data = args[place] if len(args) > place else kwargs.get('data', kwargs.get('obj'))
        array = as_array(data)
        return result if array is None else self.enter(array, result)


@contextlib.contextmanager
def entering(enter: Callable[[np.ndarray, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside the block `enter(array, tensor)` decides on each array that becomes a tensor."""
    convert = torch.from_numpy

    def from_numpy(array: np.ndarray) -> torch.Tensor:
        return enter(array, convert(array))

    with mock.patch.object(torch, 'from_numpy', from_numpy), _Creations(enter):
        yield


@contextlib.contextmanager
def recorded_arrays(stacks: Mapping[str, np.ndarray]) -> Iterator[list[Entered]]:
    """Yield a list of the arrays that enter torch inside the block, in order."""
    arrays: list[Entered] = []

    def enter(array: np.ndarray, tensor: torch.Tensor) -> torch.Tensor:
        arrays.append(Entered(array.copy(), sources_of(array, stacks), users_place()))
        return tensor

    with entering(enter):
        yield arrays


@contextlib.contextmanager
def given_arrays(
    stacks: Mapping[str, np.ndarray], inputs: Mapping[str, torch.Tensor], taken: set[str]
) -> Iterator[None]:
    """Inside the block replace arrays with a stack's values by `inputs`, key -> tensor of the stack.

    The values come from `marked`, so that each shows its source. Adds the keys to `taken`.
    """

    def enter(array: np.ndarray, tensor: torch.Tensor) -> torch.Tensor:
        found = sources_of(array, stacks)
        if not found:
            return tensor
        value = inputs[found[0].key]
        taken.add(found[0].key)
        for index in found[0].index:
            value = value[index]
        if tuple(value.shape) != tuple(tensor.shape):
            value = value.reshape(tensor.shape)
        return value.to(device=tensor.device, dtype=tensor.dtype)

    with entering(enter):
        yield


def marked(arguments: Tree, keys: Collection[str], seed: int = 0) -> Tree:
    """Return arguments with different, unique numbers under some keys of the metas."""
    generator = np.random.default_rng(seed)
    changed = {}
    for name, value in arguments.constants.items():
        if any(word in keys for word in name.split('.')) and (array := as_array(value)) is not None:
            numbers = array + MARK * (1 + np.abs(array)) * generator.uniform(1, 2, array.shape)
            if array.dtype.kind != 'f':
                numbers = array + generator.integers(1, 1000, array.shape)
            changed[name] = numbers.astype(array.dtype) if isinstance(value, np.ndarray) else numbers.item()
    return arguments.replace(changed)


def users_place() -> str:
    """Return FILE:LINE of the innermost frame of the user's code, or ''."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_file() and is_users_file(path.resolve()):
            return f'{path}:{frame.f_lineno}'
        frame = frame.f_back
    return ''
