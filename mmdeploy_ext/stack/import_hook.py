"""Mends of other people's modules that run when the module is imported, and not before.

A mend must happen between a library's import and its first use, and must not import a library that nobody
asked for. `compat.py` registers its mends here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

Execute = Callable[[], None]
MendFunction = Callable[[ModuleType, Execute], bool]


@dataclass(frozen=True)
class Mend:
    """One repair: what it is called, why, for which versions it was tried, and what it does.

    `function` takes the module that is being imported and `execute`, which runs its code (and does nothing
    for a module that was imported before). It returns whether it changed anything.
    """

    name: str
    reason: str
    versions: str
    modules: tuple[str, ...]
    function: MendFunction


class Mends:
    """A set of mends that is put in force by one call."""

    def __init__(self) -> None:
        self._mends: dict[str, Mend] = {}
        self._effective: set[str] = set()

    def register(self, *modules: str, versions: str) -> Callable[[MendFunction], MendFunction]:
        """Makes the decorated function the mend of `modules`; its docstring starts with the reason."""
        def decorate(function: MendFunction) -> MendFunction:
            reason = ' '.join(inspect.getdoc(function).split('\n\n')[0].split())
            self._mends[function.__name__] = Mend(function.__name__, reason, versions, modules, function)
            return function
        return decorate

    def apply(self) -> list[Mend]:
        """Makes every mend happen when its library is imported, and now for libraries that already are.

        Returns:
            All mends in the order of registration; a second call changes nothing. `effective()` says later
            which of them had something to do.
        """
        mends = list(self._mends.values())
        if any(isinstance(finder, _MendingFinder) and finder.mends is self for finder in sys.meta_path):
            return mends
        sys.meta_path.insert(0, _MendingFinder(self))
        for name in dict.fromkeys(name for mend in mends for name in mend.modules):
            if name in sys.modules:
                self.run(sys.modules[name], lambda: None)
        return mends

    def effective(self) -> list[Mend]:
        """The mends that changed something in this process so far."""
        return [mend for name, mend in self._mends.items() if name in self._effective]

    def names_module(self, name: str) -> bool:
        """Whether a mend is for this module."""
        return any(name in mend.modules for mend in self._mends.values())

    def run(self, module: ModuleType, execute: Execute) -> None:
        """Executes a module inside all the mends that name it."""
        for mend in self._mends.values():
            if module.__name__ in mend.modules:
                execute = functools.partial(self._run_one, mend, module, execute)
        execute()

    def _run_one(self, mend: Mend, module: ModuleType, execute: Execute) -> None:
        if mend.function(module, execute):
            self._effective.add(mend.name)


class _MendingFinder(importlib.abc.MetaPathFinder):
    """Finds a module as the other finders do; puts a `_MendingLoader` first if a mend names it."""

    def __init__(self, mends: Mends) -> None:
        self.mends = mends

    def find_spec(self, fullname: str, path: Sequence[str] | None,
                  target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        if not self.mends.names_module(fullname):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                spec.loader = _MendingLoader(spec.loader, self.mends)
                return spec
        return None


class _MendingLoader(importlib.abc.Loader):
    """Stands before a module's real loader for its one execution."""

    def __init__(self, loader: importlib.abc.Loader, mends: Mends) -> None:
        self._loader = loader
        self._mends = mends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As the real loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Gives the module its real loader back, then runs it inside its mends."""
        module.__spec__.loader = module.__loader__ = self._loader
        self._mends.run(module, functools.partial(self._loader.exec_module, module))


@contextlib.contextmanager
def patched(target: object, **attributes: object) -> Iterator[None]:
    """Sets attributes of one object for the time of the body."""
    before = {name: getattr(target, name) for name in attributes}
    for name, value in attributes.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)
