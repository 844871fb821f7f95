"""How a fault is planted in our own code: what is replaced, and by what; all is restored on exit.

A fault is named by what it does to a public function, method or constant, never by a line or a private name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import unittest.mock
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Make = Callable[[Callable], Callable]
    Change = tuple[str, Make]

OURS = ('mmdeploy_ext', 'mm2onnx_driving', 'projects')
REFERENCE = ('.reference', '.mmdet_reference', '.lidar_reference', '.lift_reference')
"""Ends of the names of modules that run the PyTorch side: they keep the functions that others define."""


@contextlib.contextmanager
def replaced(place: str, make: Make) -> Iterator[None]:
    """Replace 'module:name' or 'module:Class.name' by what `make` returns for the original.

    A function that is replaced in the module that defines it is replaced in all of our modules, their tables
    and classes that have it, as if its text were wrong, but for those that run the reference; in a module
    that imports it, in this one alone. A constant is replaced in its module.
    """
    module, path = place.split(':')
    owner: Any = importlib.import_module(module)
    *classes, name = path.split('.')
    for part in classes:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    changed = make(original.fget if isinstance(original, property) else original)
    owners = [(owner, name)]
    if not classes and getattr(original, '__module__', '') == module:
        owners = _owners(original, len(sys.modules))
    with contextlib.ExitStack() as stack:
        for one, attribute in owners:
            stack.enter_context(_attribute(one, attribute, changed))
        yield


@functools.cache
def _owners(function: Any, modules: int) -> list[tuple[Any, Any]]:
    """Return our modules, their tables and classes that have a function, and its name or key there.

    It is looked for anew when there are other `modules`, as many as Python has loaded.
    """
    owners, seen = [], set()
    for title, module in list(sys.modules.items()):
        if not title.startswith(OURS) or title.endswith(REFERENCE) or module is None:
            continue
        for name, value in list(vars(module).items()):
            if value is function:
                owners.append((module, name))
            elif isinstance(value, dict) and not name.startswith('__') and id(value) not in seen:
                seen.add(id(value))
                owners += ((value, key) for key, entry in list(value.items()) if entry is function)
            elif isinstance(value, type) and value.__module__.startswith(OURS) and id(value) not in seen:
                seen.add(id(value))
                for attribute, entry in list(vars(value).items()):
                    if entry is function or getattr(entry, '__func__', None) is function:
                        owners.append((value, attribute))
    return owners


@contextlib.contextmanager
def _attribute(owner: Any, name: Any, changed: Any) -> Iterator[None]:
    """Set an attribute of a module or class, or an entry of a table.

    A class that has inherited the attribute inherits it again afterwards.
    """
    if isinstance(owner, dict):
        with unittest.mock.patch.dict(owner, {name: changed}):
            yield
        return
    before = vars(owner).get(name)
    if isinstance(before, property):
        changed = property(changed)
    setattr(owner, name, staticmethod(changed) if isinstance(before, staticmethod) else changed)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def altered(owner: Any, name: str, make: Make) -> Callable[[Any], None]:
    """Return what replaces a function of a module or class by `make(the function)`, given a monkeypatch."""
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def when_traced(wrong: Callable) -> Make:
    """Return what runs `wrong(original, *args)` while an export traces, and the original otherwise."""

    def make(original: Callable) -> Callable:
        def chosen(*args: Any, **kwargs: Any) -> Any:
            if torch.jit.is_tracing() or torch.compiler.is_compiling():
                return wrong(original, *args, **kwargs)
            return original(*args, **kwargs)

        return chosen

    return make


def traced(make: Make) -> Make:
    """Return what has the fault while an export traces, and is the original otherwise."""

    def of(original: Callable) -> Callable:
        changed = make(original)
        return when_traced(lambda _, *args, **kwargs: changed(*args, **kwargs))(original)

    return of


def called(wrong: Callable) -> Make:
    """Return what runs `wrong(original, *args)` in place of the original."""
    return lambda original: lambda *args, **kwargs: wrong(original, *args, **kwargs)


def arguments(change: Callable) -> Make:
    """Return what calls the original with `change(*args)` instead of its arguments."""
    return lambda original: lambda *args: original(*change(*args))


def result(change: Callable) -> Make:
    """Return what gives `change(result, *args)` of the original."""
    return lambda original: lambda *args, **kwargs: change(original(*args, **kwargs), *args)
