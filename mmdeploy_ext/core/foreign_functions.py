"""What a user's code has put in the place of functions and classes of an installed library. Needs no torch.

The syntax tree of a library's module says where each of its names comes from: a definition in its file, an
import, a number. So whatever else stands at a name is found, be it a function, a partial, an object that can
be called, a class, or another function of the library.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import dis
import functools
import importlib.util
import os
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import mmdeploy_ext
from mmdeploy_ext.core.model_classes import LIBRARIES, is_users
from mmdeploy_ext.core.source_code import (
    SourceLines,
    changed_defaults,
    codes_in,
    file_of_class,
    functions_behind,
    is_in_package,
    is_installed,
    module_of,
    resolved,
    source_of_class,
    source_of_function,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

CALLED_OF_CLASSES = ('__init__', '__call__', 'forward')
"""Methods that run without their name where a class, an object or a function of autograd is called."""
BOX_TYPE = 'box_type_3d'
"""Key of the metas of a sample by which heads of mmdet3d find the class of their boxes."""
PLAIN = (bool, int, float, str, tuple, type(None))
"""Types of constants of a module that are compared."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """States where a name of a module comes from, by its code.

    Attributes:
        module: name of the module that it is imported from, which may begin with dots; '' if it is defined or
            assigned in the file.
        name: its name there.
        value: the expression that is assigned, None if none is.
    """

    module: str
    name: str
    value: ast.expr | None = None


def foreign_functions(functions: Iterable[Any]) -> dict[str, Any]:
    """Return dotted name -> what is not the library's own in a module of an installed library of OpenMMLab.

    The modules are those that define `functions`, and those of the library's functions and classes that these
    call by their names or as attributes of a module, and so on; modules in `mmdeploy_ext.models` count, too.
    Methods of `torch.Tensor` that these use by name are returned where they are the user's, and so are those
    methods and properties of mmdet3d's boxes that a head uses. Default values of a function that are not what
    its definition states are returned as its `__defaults__`, argument -> value. Of other modules that are not
    installed, such as those of a copy of the library in the user's repository, nothing is returned, nor what
    `mmdeploy_ext` itself put into a library. `functions` are functions and methods, such as a `forward`;
    classes among them are not followed.
    """
    foreign: dict[str, Any] = {}
    judged: set[str] = set()
    visited: set[int] = set()
    waiting = [behind for function in functions for behind in python_functions(function)]
    while waiting:
        function = waiting.pop()
        module = sys.modules.get(module_of(function))
        if id(function) in visited or module is None or not _is_of_library(module):
            continue
        visited.add(id(function))
        if defaults := changed_defaults(function):
            foreign[f'{module.__name__}.{function.__qualname__}.__defaults__'] = defaults
        names = _names_in(function)
        foreign |= _users_tensor_methods(names)
        for kind in _box_classes(names):
            waiting += _methods_of(kind.__mro__, {*names, '__init__'}, foreign)
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if '__class__' in cells:  # a method that calls `super()`
            waiting += _methods_of(cells['__class__'].cell_contents.__mro__[1:], names, foreign)
        for place, name, value in _bound_values(module, names):
            key = f'{place.__name__}.{name}'
            if key not in judged and not _belongs(place, name, value):
                foreign[key] = value
            judged.add(key)
            if key in foreign or name not in names:
                continue
            if isinstance(value, type):
                waiting += _methods_of(value.__mro__, {*names, *CALLED_OF_CLASSES}, foreign)
            else:
                waiting += python_functions(value)
    return foreign


def _names_in(function: FunctionType) -> set[str]:
    """Return the names in the code of a function, and its texts.

    mmcv's `batched_nms` calls the function of the name in its text `nms`.
    """
    codes = list(codes_in(function.__code__))
    texts = {text for code in codes for text in code.co_consts if isinstance(text, str)}
    return texts.union(*(code.co_names for code in codes))


def _users_tensor_methods(names: set[str]) -> dict[str, Any]:
    methods = vars(sys.modules['torch'].Tensor) if 'torch' in sys.modules else {}
    users = (name for name in names & methods.keys() if is_users_value(methods[name]))
    return {f'torch.Tensor.{name}': methods[name] for name in users}


def foreign_globals(function: Any, original: Any) -> dict[str, Any]:
    """Return dotted name -> what a user's copy of a library's function has there, and the library has not.

    The names are those of the copy's module.

    A copy whose code is the library's computes the same only if its names stand for the same. The copies that
    it calls are compared with what the library's function calls, in the same way.

    Args:
        function: function of the user's, whose code is that of `original` but for comments and docstrings.
        original: function of a library.
    """
    foreign: dict[str, Any] = {}
    visited: set[int] = set()
    waiting: list[tuple[Any, Any]] = [(function, original)]
    while waiting:
        copy, library = (python_functions(function)[-1] for function in waiting.pop())
        if id(copy) in visited or copy is library:
            continue
        visited.add(id(copy))
        instructions = [line for code in codes_in(copy.__code__) for line in dis.get_instructions(code)]
        for name in {line.argval for line in instructions if line.opname == 'LOAD_GLOBAL'}:
            value = copy.__globals__.get(name, getattr(builtins, name, None))
            expected = library.__globals__.get(name, getattr(builtins, name, None))
            pairs = _pairs_of_copies(value, expected)
            if pairs is None:
                foreign[f'{module_of(copy)}.{name}'] = value
            else:
                waiting += pairs
    return foreign


def is_foreign(function: Callable[..., Any]) -> bool:
    """Return whether a Python function is the user's (`is_users`), and in no folder of installed packages."""
    return is_users(function) and not is_in_package(Path(function.__code__.co_filename).resolve())


def source_of(value: Any) -> SourceLines:
    """Return the lines of what stands in the place of a library's, with the hash of its syntax tree.

    Of several functions behind each other the outermost of the user's counts, of a partial its function, of
    an object its class. A lambda has the line that it begins at, and no hash. A constant, or a dict such as
    that of changed defaults, has no lines: its `file` is 'value 0.5'.
    """
    if isinstance(value, functools.partial):
        return source_of(value.func)
    functions = python_functions(value)
    if functions:
        function = next(filter(is_foreign, functions), functions[0])
        lines, first = source_of_function(function), function.__code__.co_firstlineno
        is_lambda = function.__name__ == '<lambda>'
        return dataclasses.replace(lines, first=first, last=first) if is_lambda else lines
    if isinstance(value, (*PLAIN, dict)):
        return SourceLines(f'value {value!r}', 0, 0, '')
    return source_of_class(value if isinstance(value, type) else type(value))


def _bound_values(module: ModuleType, names: set[str]) -> Iterator[tuple[ModuleType, str, Any]]:
    """Yield module, name and value of what a function of a module may mean by the names in its code.

    Of its own module everything that can be called counts: mmcv calls `nms` by a text. Of modules that it
    names, and of constants, those are yielded that it names.
    """
    named = [vars(module)[name] for name in names & vars(module).keys()]
    modules = [value for value in named if isinstance(value, ModuleType)]
    for place, listed in [
        (module, vars(module).keys()),
        *((named_module, names) for named_module in modules),
    ]:
        for name in listed & vars(place).keys():
            value = vars(place)[name]
            if callable(value) or (name in names and isinstance(value, PLAIN)):
                yield place, name, value


def _belongs(place: ModuleType, name: str, value: Any) -> bool:
    """Return whether a value is what the code of a module has at a name, or `mmdeploy_ext` put it there."""
    if _is_ours(value):
        return True
    origins: list[Origin] = []
    if _is_of_library(place):
        file = str(place.__file__)
        by_name = _origins(file, os.stat(file).st_mtime_ns)
        starred = [dataclasses.replace(star, name=name) for star in by_name.get('*', ())]
        origins = by_name.get(name) or starred
    answers = [_is_from(place, origin, value) for origin in origins]
    judged = [answer for answer in answers if answer is not None]
    return any(judged) if judged else not is_users_value(value)


def _is_from(place: ModuleType, origin: Origin, value: Any) -> bool | None:
    """Return whether a value is what an origin of a module's name says; None if that cannot be told."""
    if origin.module:
        is_package = Path(str(place.__file__)).stem == '__init__'
        package = place.__name__ if is_package else place.__name__.rpartition('.')[0]
        module = sys.modules.get(importlib.util.resolve_name(origin.module, package))
        is_there = module is not None and hasattr(module, origin.name)
        return _belongs(module, origin.name, value) if is_there else None
    if origin.value is not None:
        try:
            return ast.literal_eval(origin.value) == value if isinstance(value, PLAIN) else None
        except ValueError:
            return None
    if isinstance(value, type):
        return (value.__module__, value.__qualname__) == (place.__name__, origin.name)
    functions = python_functions(value)
    if not functions:
        return None
    is_there = resolved(functions[-1].__code__.co_filename) == resolved(str(place.__file__))
    return is_there and functions[-1].__name__ == origin.name and not any(map(is_users, functions))


@functools.lru_cache(maxsize=1024)
def _origins(path: str, _modified_ns: int) -> dict[str, list[Origin]]:
    """Return name -> origins of the names of a file outside of its functions; '*' has imports of all."""
    origins: dict[str, list[Origin]] = {}
    waiting: list[ast.AST] = [ast.parse(Path(path).read_bytes())]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.stmt | ast.ExceptHandler):
                bound = list(_bound_by(node))
                for name, origin in bound:
                    origins.setdefault(name, []).append(origin)
                if not bound:  # `if` and `try` have statements of their own
                    waiting.append(node)
    return origins


def _bound_by(node: ast.AST) -> Iterator[tuple[str, Origin]]:
    """Yield the names that a definition, an assignment or an import from a module binds, and origins."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name, Origin('', node.name)
    elif isinstance(node, ast.ImportFrom):
        module = '.' * node.level + (node.module or '')
        for alias in node.names:
            yield alias.asname or alias.name, Origin(module, alias.name)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, Origin('', target.id, node.value)


def _methods_of(order: Sequence[type], names: Iterable[str], foreign: dict[str, Any]) -> list[Any]:
    """Return the methods and properties of these names that classes of a library have.

    The first class that has one counts.

    Those that are not the library's are put into `foreign`.
    """
    methods = []
    for name in names:
        owner = next((base for base in order if name in vars(base)), object)
        value = vars(owner).get(name)
        value = value.fget if isinstance(value, property) else value
        method = getattr(value, '__func__', value)
        module = sys.modules.get(owner.__module__)
        if not callable(method) or module is None or not _is_of_library(module):
            continue
        functions = python_functions(method)
        is_foreign_method = any(map(is_users, functions)) if functions else is_users_value(method)
        if is_foreign_method and not _is_ours(method):
            foreign[f'{owner.__module__}.{owner.__qualname__}.{name}'] = method
        methods += functions
    return methods


def _box_classes(names: set[str]) -> list[type]:
    """Return mmdet3d's classes of boxes if a function with these names in its code gets one by `BOX_TYPE`."""
    module = sys.modules.get('mmdet3d.core.bbox.structures')
    if module is None or BOX_TYPE not in names:
        return []
    kinds = (getattr(module, f'{frame}Instance3DBoxes', None) for frame in ('LiDAR', 'Camera', 'Depth'))
    return [kind for kind in kinds if kind is not None]


def _pairs_of_copies(value: Any, expected: Any) -> list[tuple[Any, Any]] | None:
    """Return the functions of a copy of a library's value beside the library's; None if it is another value.

    Of values that are neither constants nor can be called nothing is said: the list is empty.
    """
    if value is expected or (isinstance(value, PLAIN) and value == expected):
        return []
    if isinstance(value, ModuleType) and isinstance(expected, ModuleType):
        return None
    if not callable(value):
        return None if isinstance(value, PLAIN) else []
    if isinstance(value, type) and isinstance(expected, type):
        pairs = [(method, vars(expected).get(name)) for name, method in vars(value).items()]
        pairs = [pair for pair in pairs if isinstance(pair[0], FunctionType)]
        same = source_of_class(value).sha256 == source_of_class(expected).sha256
        return pairs if same and all(python_functions(original) for _, original in pairs) else None
    functions, originals = ([*functions_behind(function)] for function in (value, expected))
    if not functions or not originals or any(map(is_users, functions[:-1])):
        return None
    digests = [source_of_function(behind[-1]).sha256 for behind in (functions, originals)]
    return [(value, expected)] if digests[0] and digests[0] == digests[1] else None


def is_users_value(value: Any) -> bool:
    """Return whether a function, a class, or the class of an object is the user's.

    Of a partial its function and its arguments count. What is in a folder of installed packages is not.
    """
    if isinstance(value, functools.partial):
        return any(map(is_users_value, (value.func, *value.args, *value.keywords.values())))
    functions = python_functions(value)
    if functions:
        return any(map(is_foreign, functions))
    kind = value if isinstance(value, type) else type(value)
    package = kind.__module__.partition('.')[0]
    if package in (mmdeploy_ext.__name__, *LIBRARIES, *sys.stdlib_module_names):
        return False
    path = file_of_class(kind)
    return path is not None and not is_in_package(path.resolve()) and not is_installed(package, path)


def _is_ours(value: Any) -> bool:
    """Return whether a function, also that of a partial, a class, or an object's is one of `mmdeploy_ext`."""
    if isinstance(value, functools.partial):
        return _is_ours(value.func)
    functions = python_functions(value)
    kind = value if isinstance(value, type) else type(value)
    name = module_of(functions[0]) if functions else kind.__module__
    return name.partition('.')[0] == mmdeploy_ext.__name__


def python_functions(value: Any) -> list[FunctionType]:
    """Return the Python functions behind a value, not what numba compiles of one; [] if there are none."""
    # the types of functions have attributes of their names, too
    behind = functions_behind(value) if callable(value) and not isinstance(value, type) else ()
    return [function for function in behind if isinstance(function, FunctionType)]


def _is_of_library(module: ModuleType) -> bool:
    """Return whether a module is of an installed library of OpenMMLab, or of the models of `mmdeploy_ext`."""
    file = getattr(module, '__file__', None)
    if module.__name__.startswith(f'{mmdeploy_ext.__name__}.models.'):
        return True
    return bool(file) and is_installed(module.__name__.partition('.')[0], str(file))
