"""Nested lists, tuples, dicts and slices of tensors and sizes: walked, copied, with plain sizes."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import torch

from mmdeploy_ext.lint.record import plain


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield, in order, the tensors of nested lists, tuples, dicts (their values) and slices."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor))


def leaves(value: Any) -> Iterator[Any]:
    """Yield, in order, what nested lists, tuples, dicts (their values) and slices hold."""
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def without_sizes(value: Any) -> Any:
    """Return nested values with plain numbers in place of marked ones (`record.SizeInt`, `SizeFloat`).

    Lists, tuples, `torch.Size`, dicts (their values) and slices are rebuilt; other subclasses stay as they
    are, with the marked numbers in them.
    """
    if isinstance(value, slice):
        return slice(*map(without_sizes, (value.start, value.stop, value.step)))
    if type(value) in (list, tuple, torch.Size):
        return type(value)(map(without_sizes, value))
    return {key: without_sizes(item) for key, item in value.items()} if type(value) is dict else plain(value)


def copy_of(module: torch.nn.Module) -> torch.nn.Module:
    """Return a deep copy of a module; the module itself if it cannot be copied.

    That is if copying raises a RuntimeError, TypeError, NotImplementedError or PickleError; other errors are
    raised.
    """
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError, NotImplementedError, pickle.PickleError):
        # non-leaf tensors, locks, functions of torch.jit.script
        return module


def copies(value: Any) -> Any:
    """Return nested lists, tuples and dicts with every tensor copied and detached; the rest is shared.

    Dicts of any class become plain ones, named tuples keep theirs; other subclasses of lists and tuples are
    shared with the tensors in them, as slices are.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copies(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, '_fields'):
        return type(value)(*map(copies, value))
    return type(value)(map(copies, value)) if type(value) in (list, tuple) else value
