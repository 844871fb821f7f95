"""Functions that a user's code has put in the place of those of an installed library. Needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.model_classes import is_users
from mmdeploy_ext.core.source_code import functions_behind, is_installed, module_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PACKAGE_FOLDERS = ('site-packages', 'dist-packages')
"""Names of the folders of installed packages; a plugin is in a folder of the user."""


def foreign_functions(functions: Iterable[Any]) -> dict[str, Callable[..., Any]]:
    """Return dotted name -> function of the user's code in a module of an installed library of OpenMMLab.

    The modules are those that define `functions`, and those of the library's functions that these call by
    their names or as attributes of a module, and so on. Of modules that are not installed, such as those of
    a copy of the library in the user's repository, nothing is returned.
    """
    foreign: dict[str, Callable[..., Any]] = {}
    seen: set[int] = set()
    waiting = [behind for function in functions for behind in _python_functions(function)]
    while waiting:
        function = waiting.pop()
        module = sys.modules.get(module_of(function))
        if id(function) in seen or module is None or not _is_of_library(module):
            continue
        seen.add(id(function))
        names = set(_names_in(function.__code__))
        values = (vars(module).get(name) for name in names)
        modules = [value for value in values if isinstance(value, ModuleType) and _is_of_library(value)]
        # of its own module all names count: mmcv calls `nms` by a text
        bound = [(module, vars(module)), *((other, names & vars(other).keys()) for other in modules)]
        for place, listed in bound:
            for name in list(listed):
                called = _python_functions(vars(place)[name])
                if any(map(is_foreign, called)):
                    foreign[f'{place.__name__}.{name}'] = next(filter(is_foreign, called))
                elif name in names:
                    waiting += called
    return foreign


def is_foreign(function: Callable[..., Any]) -> bool:
    """Return whether a Python function is the user's (`is_users`), and in no folder of installed packages."""
    path = Path(function.__code__.co_filename).resolve()
    return is_users(function) and not any(folder in path.parts for folder in PACKAGE_FOLDERS)


def _python_functions(value: Any) -> list[FunctionType]:
    """Return the Python functions behind a value, not what numba compiles of one; [] if there are none."""
    behind = functions_behind(value) if callable(value) else ()
    return [function for function in behind if isinstance(function, FunctionType)]


def _is_of_library(module: ModuleType) -> bool:
    """Return whether a module is a file of an installed library of OpenMMLab."""
    file = getattr(module, '__file__', None)
    return bool(file) and is_installed(module.__name__.partition('.')[0], Path(str(file)))


def _names_in(code: CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes in the code of a function and of the functions in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
