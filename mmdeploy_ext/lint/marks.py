"""Which tensors depend on the values of which inputs: marks that go with the tensors of an observed run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from mmdeploy_ext.lint.sizes import Origins, is_size, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPE_ONLY = {
    'zeros_like', 'ones_like', 'full_like', 'empty_like', 'rand_like', 'randn_like', 'randint_like',
    'new_zeros', 'new_ones', 'new_full', 'new_empty', 'new_tensor', 'dim', 'size', 'numel',
    'stride', 'ndimension', 'nelement', 'is_floating_point', 'type', 'element_size', 'is_contiguous',
    'get_device', 'data_ptr',
}  # fmt: skip
"""Functions whose result does not depend on the values of the tensor that they are called on."""

VALUES_FROM_SIZES = {
    'arange', 'linspace', 'range', 'tensor', 'as_tensor', 'full', 'full_like', 'new_full', 'new_tensor',
    'scalar_tensor', 'add', 'sub', 'rsub', 'mul', 'div', 'true_divide', 'floor_divide', 'remainder', 'pow',
    'clamp', 'add_', 'sub_', 'mul_', 'div_', 'clamp_', 'fill_', '__rsub__', '__rdiv__', '__rpow__',
    '__setitem__',
}  # fmt: skip
"""Functions that put a number which they are given into the values of their result."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a tensor depends on: `inputs`, a bit per input whose values count, and `origins` of sizes."""

    inputs: int = 0
    origins: Origins = frozenset()

    def __or__(self, other: Mark) -> Mark:
        """Return what depends on both."""
        if other is self or other is NOTHING:
            return self
        return other if self is NOTHING else Mark(self.inputs | other.inputs, self.origins | other.origins)


NOTHING = Mark()


class Marks:
    """The marks of all live tensors of a run."""

    def __init__(self) -> None:
        self._of = WeakIdKeyDictionary()

    def put(self, tensor: torch.Tensor, mark: Mark) -> None:
        """Set the mark of a tensor."""
        self._of[tensor] = mark

    def of(self, tensor: torch.Tensor) -> Mark:
        """Return the mark of a tensor: its own, or what its storage was written from."""
        mark = self._of.get(tensor, NOTHING)
        base = tensor._base
        return mark if base is None else mark | self._of.get(base, NOTHING)

    def of_all(self, values: Any) -> Mark:
        """Return the mark of all tensors in nested values."""
        mark = NOTHING
        for tensor in tensors_in(values):
            mark |= self.of(tensor)
        return mark

    def add(self, tensor: torch.Tensor, mark: Mark) -> None:
        """Note that a tensor was written in place."""
        self.put(tensor, self.of(tensor) | mark)
        if tensor._base is not None:
            self.put(tensor._base, self._of.get(tensor._base, NOTHING) | mark)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of nested lists, tuples, dicts and slices."""
    return (leaf for leaf in _leaves(value) if isinstance(leaf, torch.Tensor))


def numbers_in(value: Any) -> Iterator[Any]:
    """Yield the watched sizes of nested values."""
    return (leaf for leaf in _leaves(value) if is_size(leaf))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, torch.Tensor) or is_size(value):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, slice):
        yield from _leaves((value.start, value.stop, value.step))
    else:
        yield value


def without_sizes(value: Any) -> Any:
    """Return nested values with plain numbers in place of watched ones."""
    if is_size(value):
        return plain(value)
    if isinstance(value, slice):
        return slice(*map(without_sizes, (value.start, value.stop, value.step)))
    if type(value) in (list, tuple, torch.Size):
        items = [without_sizes(item) for item in value]
        return (
            items if type(value) is list else torch.Size(items) if type(value) is torch.Size else tuple(items)
        )
    return {key: without_sizes(item) for key, item in value.items()} if type(value) is dict else value
