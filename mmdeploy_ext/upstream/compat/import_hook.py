"""Patches of third-party modules that run when the module is imported."""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

Execute = Callable[[], None]
"""Runs the code of a module, unless it was imported before."""
PatchFunction = Callable[[ModuleType, Execute], bool]
"""(module, `execute`) -> whether it changed anything; it calls `execute` or replaces the code."""


@dataclass(frozen=True)
class Patch:
    """One patch.

    Attributes:
        reason: first paragraph of the function's docstring.
        versions: tried versions of the libraries.
        modules: full names of the patched modules.
    """

    name: str
    reason: str
    versions: str
    modules: tuple[str, ...]
    function: PatchFunction


class Patches:
    def __init__(self) -> None:
        self._patches: dict[str, Patch] = {}
        self._effective: set[str] = set()

    def register(self, *modules: str, versions: str) -> Callable[[PatchFunction], PatchFunction]:
        """Decorator: the function patches `modules`; its docstring starts with the reason."""

        def decorate(function: PatchFunction) -> PatchFunction:
            reason = ' '.join(inspect.getdoc(function).split('\n\n')[0].split())
            self._patches[function.__name__] = Patch(function.__name__, reason, versions, modules, function)
            return function

        return decorate

    def apply(self) -> list[Patch]:
        """Make every patch run when its module is imported, or now."""
        patches = list(self._patches.values())
        if any(isinstance(finder, _PatchingFinder) and finder.patches is self for finder in sys.meta_path):
            return patches
        sys.meta_path.insert(0, _PatchingFinder(self))
        for name in dict.fromkeys(name for patch in patches for name in patch.modules):
            if name in sys.modules:
                self.run(sys.modules[name], lambda: None)
        return patches

    def effective(self) -> list[Patch]:
        """Patches that changed something in this process so far."""
        return [patch for name, patch in self._patches.items() if name in self._effective]

    def names_module(self, name: str) -> bool:
        return any(name in patch.modules for patch in self._patches.values())

    def run(self, module: ModuleType, execute: Execute) -> None:
        """Execute a module inside all its patches, the last registered outermost."""
        for patch in self._patches.values():
            if module.__name__ in patch.modules:
                execute = functools.partial(self._run_patch, patch, module, execute)
        execute()

    def _run_patch(self, patch: Patch, module: ModuleType, execute: Execute) -> None:
        if patch.function(module, execute):
            self._effective.add(patch.name)


PATCHES = Patches()
patch = PATCHES.register


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def after(*modules: str, versions: str, without_gpu: bool = False) -> Callable[[Callable], PatchFunction]:
    """Decorator: the function takes the module after its code ran; its docstring starts with the reason.

    It returns False if it changed nothing. `without_gpu`: only on machines without a GPU.
    """

    def decorate(function: Callable[[ModuleType], bool | None]) -> PatchFunction:
        @functools.wraps(function)
        def changed(module: ModuleType, execute: Execute) -> bool:
            execute()
            return not (without_gpu and has_gpu()) and function(module) is not False

        return patch(*modules, versions=versions)(changed)

    return decorate


class _PatchingFinder(importlib.abc.MetaPathFinder):
    """Finds modules by the other finders, and runs patched modules inside their patches."""

    def __init__(self, patches: Patches) -> None:
        self.patches = patches

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not self.patches.names_module(fullname):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                self._run_patches_on_load(spec.loader)
                return spec
        return None

    def _run_patches_on_load(self, loader: importlib.abc.Loader) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            self.patches.run(module, functools.partial(execute, module))

        loader.exec_module = exec_module


@contextlib.contextmanager
def patched(target: object, **attributes: object) -> Iterator[None]:
    """Set attributes of `target` inside the block; AttributeError: no such attribute."""
    before = {name: vars(target).get(name, getattr(target, name)) for name in attributes}
    inherited = [name for name in attributes if isinstance(target, type) and name not in vars(target)]
    for name, value in attributes.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if name in inherited:
                delattr(target, name)
            else:
                setattr(target, name, value)
