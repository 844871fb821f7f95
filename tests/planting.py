"""How a fault is planted in our own code: what is replaced, and by what; all is restored on exit."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Make = Callable[[Callable], Callable]


@dataclasses.dataclass(frozen=True)
class Planted:
    """One fault.

    Attributes:
        name: what is wrong.
        family: toy whose export has it: key of `mutation_toys.TOYS`.
        apply: gives the context inside which our code has the fault.
    """

    name: str
    family: str
    apply: Callable[[], contextlib.AbstractContextManager]


FAULTS: list[Planted] = []
"""All of them; filled by the modules that `planted_faults` imports."""


def planted(name: str, families: str, *changes: tuple[str, Make]) -> None:
    """Add a fault for each of some families (words); a change is what `replaced` takes.

    A place that nothing calls in the end is an error: the fault would be none.
    """

    @contextlib.contextmanager
    def apply() -> Iterator[None]:
        called: set[str] = set()
        with contextlib.ExitStack() as stack:
            for place, make in changes:
                stack.enter_context(replaced(place, _noting(make, lambda place=place: called.add(place))))
            yield
        idle = {place for place, _ in changes} - called
        assert not idle, f'{name}: nothing called {", ".join(sorted(idle))}'

    FAULTS.extend(Planted(name, family, apply) for family in families.split())


def _noting(make: Make, called: Callable[[], None]) -> Make:
    """Return `make` whose function calls `called` first."""

    def noting(original: Callable) -> Callable:
        changed = make(original)

        @functools.wraps(changed)
        def noted(*args: Any, **kwargs: Any) -> Any:
            called()
            return changed(*args, **kwargs)

        return noted

    return noting


@contextlib.contextmanager
def replaced(place: str, make: Make) -> Iterator[None]:
    """Replace 'module:name' or 'module:Class.name' by what `make` returns for the original."""
    module, path = place.split(':')
    owner: Any = importlib.import_module(module)
    *classes, name = path.split('.')
    for part in classes:
        owner = getattr(owner, part)
    kept, original = vars(owner)[name], getattr(owner, name)
    changed = make(original)
    setattr(owner, name, staticmethod(changed) if isinstance(kept, staticmethod) else changed)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def altered(owner: Any, name: str, make: Make) -> Callable[[Any], None]:
    """Return what replaces a function of a module or class by `make(the function)`, given a monkeypatch."""
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def when_traced(wrong: Callable) -> Make:
    """Return what runs `wrong(original, *args)` while torch.onnx traces, and the original otherwise."""

    def make(original: Callable) -> Callable:
        def chosen(*args: Any, **kwargs: Any) -> Any:
            if torch.onnx.is_in_onnx_export():
                return wrong(original, *args, **kwargs)
            return original(*args, **kwargs)

        return chosen

    return make


def arguments(change: Callable) -> Make:
    """Return what calls the original with `change(*args)` instead of its arguments."""
    return lambda original: lambda *args: original(*change(*args))


def result(change: Callable) -> Make:
    """Return what gives `change(result, *args)` of the original."""
    return lambda original: lambda *args, **kwargs: change(original(*args, **kwargs), *args)


def settings(**changes: Callable) -> Make:
    """Return what reads settings wrongly: field -> change of its value."""

    def wrong(found: Any, *_: Any) -> Any:
        return dataclasses.replace(
            found, **{name: change(getattr(found, name)) for name, change in changes.items()}
        )

    return result(wrong)


def folding(change: Callable[[torch.nn.Module], None]) -> Callable[[], contextlib.AbstractContextManager]:
    """Return a fault of the folding: it works on a copy of the model to which `change` was done."""

    @contextlib.contextmanager
    def apply() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for module in list(sys.modules.values()):
                name = getattr(module, '__name__', '')
                if name.startswith(('mmdeploy_ext', 'projects')) and 'fuse' in vars(module):
                    stack.enter_context(replaced(f'{name}:fuse', _of_changed(change)))
            yield

    return apply


def _of_changed(change: Callable[[torch.nn.Module], None]) -> Make:
    def make(original: Callable) -> Callable:
        def fuse(model: torch.nn.Module) -> torch.nn.Module:
            model = copy.deepcopy(model)
            change(model)
            return original(model)

        return fuse

    return make
