"""Parts as they are typed: `img_backbone+img_neck`, `pts_bbox_head.transformer`, `extract_img_feat()`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


# Arguments and results of calls as trees: named leaves, copies, JSON.


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
        names = tuple('.'.join(map(key_text, path)) for path, _ in leaves)
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


def key_text(key: Any) -> str:
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


FORWARD = 'forward'
SUFFIX = '()'


@dataclasses.dataclass(frozen=True)
class Step:
    """One method of one module.

    Attributes:
        owner: path of the module in the model; '' is the model itself.
        method: name of the method, 'forward' for a module.
    """

    owner: str
    method: str = FORWARD

    @classmethod
    def parse(cls, text: str) -> Step:
        if not text.endswith(SUFFIX):
            return cls(text)
        owner, _, method = text.removesuffix(SUFFIX).rpartition('.')
        return cls(owner, method)

    @property
    def text(self) -> str:
        if self.method == FORWARD:
            return self.owner
        return f'{self.owner}.{self.method}{SUFFIX}'.lstrip('.')

    def owner_in(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the module that has the method; UsageError: the model has no such module or method."""
        try:
            owner = model.get_submodule(self.owner)
        except AttributeError as error:
            names = [name for name, _ in model.named_modules() if name]
            raise UsageError(
                f'--parts {self.text}: {type(model).__name__} has no module {self.owner!r}'
                f'{did_you_mean(self.owner, names)}'
            ) from error
        if not callable(getattr(owner, self.method, None)):
            raise UsageError(f'--parts {self.text}: {type(owner).__name__} has no method {self.method!r}')
        return owner


@dataclasses.dataclass(frozen=True)
class Part:
    """Steps that become one graph: tensors flow from each to later ones."""

    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read a part as typed; UsageError: a step is empty or repeated."""
        names = [name.strip() for name in text.split('+')]
        if not all(names) or len(set(names)) < len(names):
            raise UsageError(f'--parts {text}: expected paths of modules or methods, joined by +')
        return cls(tuple(map(Step.parse, names)))

    @property
    def text(self) -> str:
        return '+'.join(step.text for step in self.steps)

    @property
    def file(self) -> str:
        return f'{self.text.replace(SUFFIX, "")}.onnx'


def parse_parts(texts: list[str] | tuple[str, ...], model: torch.nn.Module) -> list[Part]:
    """Return the typed parts; UsageError: one is not in the model, or two share a step."""
    parts = [Part.parse(text) for text in texts]
    steps = [step for part in parts for step in part.steps]
    for step in steps:
        step.owner_in(model)
        if steps.count(step) > 1:
            raise UsageError(f'--parts {step.text}: belongs to two parts')
    return parts


@contextlib.contextmanager
def intercepted(model: torch.nn.Module, handlers: Mapping[Step, Callable[..., Any]]) -> Iterator[None]:
    """Inside the block `handler(original, args, kwargs)` replaces each step's method."""
    with contextlib.ExitStack() as stack:
        for step, handler in handlers.items():
            owner = step.owner_in(model)
            original = getattr(owner, step.method)
            stack.enter_context(replaced_entry(vars(owner), step.method, _handled(handler, original)))
        yield


def _handled(handler: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return handler(original, args, kwargs)

    return call
