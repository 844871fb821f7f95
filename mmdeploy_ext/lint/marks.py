"""Which tensors depend on the values of which inputs: marks that go with the tensors of an observed run."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from mmdeploy_ext.lint.nested import tensors_in
from mmdeploy_ext.lint.record import Origins

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
