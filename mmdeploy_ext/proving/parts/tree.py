"""Arguments and results of calls as trees: named leaves, copies, JSON."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PLAIN = (bool, int, float, str, type(None))
"""Leaf types in JSON."""


@dataclasses.dataclass(frozen=True)
class Tree:
    """A nested value as leaves with names.

    Attributes:
        names: path of each leaf, such as 'mlvl_feats.0' or 'img_metas.0.filename'.
        values: leaves: tensors, arrays, modules, numbers, texts and any other object.
        spec: how the leaves are nested.
    """

    names: tuple[str, ...]
    values: tuple[Any, ...]
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, value: Any) -> Tree:
        leaves, spec = pytree.tree_flatten_with_path(value)
        names = tuple('.'.join(map(_key_text, path)) for path, _ in leaves)
        return cls(names, tuple(leaf for _, leaf in leaves), spec)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.items() if isinstance(value, torch.Tensor)}

    @property
    def constants(self) -> dict[str, Any]:
        """The leaves other than tensors and modules."""
        kinds = torch.Tensor, torch.nn.Module
        return {name: value for name, value in self.items() if not isinstance(value, kinds)}

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {name: value for name, value in self.items() if isinstance(value, torch.nn.Module)}

    def items(self) -> list[tuple[str, Any]]:
        return list(zip(self.names, self.values, strict=True))

    def nested(self, replaced: Mapping[str, Any] | None = None) -> Any:
        """Return the nested value with the leaves `replaced` by name."""
        replaced = replaced or {}
        return pytree.tree_unflatten([replaced.get(name, value) for name, value in self.items()], self.spec)

    def replace(self, replaced: Mapping[str, Any]) -> Tree:
        values = tuple(replaced.get(name, value) for name, value in self.items())
        return dataclasses.replace(self, values=values)

    def copied(self) -> Tree:
        """Return a copy safe from later changes in place; modules stay."""
        return dataclasses.replace(self, values=tuple(map(copied_leaf, self.values)))

    def form(self) -> dict[str, str]:
        """Return name -> type and number of axes of each tensor."""
        return {name: f'{tensor.dtype} of {tensor.dim()} axes' for name, tensor in self.tensors.items()}


def copied_leaf(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, (*PLAIN, torch.nn.Module, type)):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # a lock, a file, a generator
        return value


def _key_text(key: Any) -> str:
    for attribute in ('idx', 'key', 'name'):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def arguments_of(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return parameter -> value of a call, without defaults."""
    return dict(inspect.signature(function).bind(*args, **kwargs).arguments)


def call_with(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a function with the result of `arguments_of`; classes may have other names."""
    signature = inspect.signature(function)
    if not arguments.keys() <= signature.parameters.keys():
        return function(*arguments.values())
    bound = inspect.BoundArguments(signature, OrderedDict(arguments))
    return function(*bound.args, **bound.kwargs)


def same_leaf(first: Any, second: Any) -> bool:
    """Whether two constants are equal; incomparable objects are not."""
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    try:
        if isinstance(first, np.ndarray):
            return first.dtype == second.dtype and np.array_equal(
                first, second, equal_nan=first.dtype.kind == 'f'
            )
        if isinstance(first, PLAIN) or type(first).__module__ in ('builtins', 'numpy'):
            return bool(first == second) or (first != first and second != second)
    except Exception:
        return False
    return False
