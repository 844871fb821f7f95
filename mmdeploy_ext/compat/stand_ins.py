"""Stand-ins for what the user's modules import and this machine lacks; nothing of them is in `sys.modules`.

An import statement in the body of a user's module gets a stand-in for an absent module, a missing name, or a
module of the user's that fails, unless a `try` surrounds it. Libraries, functions, `find_spec` and
`import_module` get the truth. The first use after the imports raises AbsentPackageError in one line.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import importlib
import importlib.util
import os
import symtable
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from mmdeploy_ext.compat import operator_forms
from mmdeploy_ext.compat.import_hook import after
from mmdeploy_ext.util.errors import AbsentPackageError, UsageError, one_line
from mmdeploy_ext.util.missing_packages import not_installed
from mmdeploy_ext.util.source_code import OURS, is_users_file

LIBRARIES = ('torch', 'torchvision', 'numpy', 'mmcv', 'mmdet', 'mmdet3d', 'mmseg', OURS.name)
"""Packages that have to be there, and whose own modules have to run."""
LIBRARY_MODULES = ('mmdet3d.core.evaluation.lyft_eval', 'mmdet3d.datasets.lyft_dataset')
"""Modules of libraries that get stand-ins: of lyft_dataset_sdk, which pins libraries of 2019."""
FAULTS = (UsageError, SyntaxError, NameError, KeyError)
"""Errors of imports that pass: faults of the code, and names that are registered twice."""
NEW_ENOUGH = '99.0.0'
"""Version of what is not there."""
OLDER_OPERATORS = 'mmdeploy_ext.compat.older_operators'
"""Module of names that mmdet3d had before 1.0; it needs PyTorch."""
COMPAT = f'{os.path.dirname(__file__)}{os.sep}'


@dataclasses.dataclass
class Lack:
    """What a stand-in stands for.

    Attributes:
        name: 'wandb', 'torch.onnx.symbolic_registry'.
        reason: why it is not there, and what to do.
        used: FILE:LINE of the first use, or ''.
    """

    name: str
    reason: str
    imported: str
    used: str = ''


lacks: dict[str, Lack] = {}
"""Name -> what modules of the user's got a stand-in for in this process."""
fallbacks: dict[str, str] = {}
"""FILE:LINE of an import that failed in a `try` of the user's -> what it imports."""
failed: dict[str, str] = {}
"""Module that failed when a module of the user's imported it -> why."""


def offer() -> None:
    """Give stand-ins to modules of the user's that are imported from now on."""
    builtins.__import__ = import_


def forget() -> None:
    """Forget what this process has read so far, for tests."""
    for known in (lacks, fallbacks, failed):
        known.clear()


# --- the user's frames


@functools.lru_cache(maxsize=4096)
def is_users(file: str) -> bool:
    """Return whether a file is of the user's modules."""
    return os.path.isabs(file) and is_users_file(Path(file)) and os.path.isfile(file)


def _user_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the user's frames, innermost first, up to a script or the code of ours that imports or builds."""
    while frame is not None and frame.f_globals.get('__name__') != '__main__':
        file = frame.f_code.co_filename
        if is_users(file):
            yield frame
        elif file.startswith(f'{OURS}{os.sep}') and not file.startswith(COMPAT):
            return
        frame = frame.f_back


def _is_importing() -> bool:
    return any(frame.f_code.co_name == '<module>' for frame in _user_frames(sys._getframe(2)))


def users_place(frame: FrameType) -> str:
    """Return FILE:LINE of the user's innermost frame, or ''."""
    return next(map(_place, _user_frames(frame)), '')


def _place(frame: FrameType) -> str:
    return f'{frame.f_code.co_filename}:{frame.f_lineno}'


@functools.lru_cache(maxsize=4096)
def _tries(file: str) -> list[tuple[int, int, set[str]]]:
    """First and last line of each `try` or `suppress` of a file, and names of the errors that it takes."""
    blocks = []
    for node in ast.walk(_parsed(file)):
        kinds: list[ast.expr | None] = []
        if isinstance(node, ast.Try | ast.TryStar):
            kinds = [handler.type for handler in node.handlers]
        elif isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            kinds = [arg for call in calls if 'suppress' in ast.unparse(call.func) for arg in call.args]
        names = {'BaseException'} if None in kinds else set()
        for kind in filter(None, kinds):
            names |= {getattr(part, 'attr', getattr(part, 'id', '')) for part in ast.walk(kind)}
        if names:
            blocks.append((node.body[0].lineno, node.body[-1].end_lineno or 0, names))
    return blocks


def _parsed(file: str) -> ast.Module:
    try:
        return ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _tried_at(frame: FrameType, kind: type[BaseException]) -> str:
    """FILE:LINE of the innermost frame of the user's that is in a `try` for such errors, or ''."""
    names = {base.__name__ for base in kind.__mro__}
    for users in _user_frames(frame) if is_users(frame.f_code.co_filename) else ():
        for first, last, taken in _tries(users.f_code.co_filename):
            if first <= users.f_lineno <= last and names & taken:
                return _place(users)
    return ''


# --- import statements


_import = builtins.__import__


def import_(
    name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
) -> Any:
    """Import as `__import__` does; statements of the user's modules get stand-ins for what is not there."""
    body = sys._getframe(1)
    if body.f_code.co_name != '<module>' or not _gets_stand_ins(body):
        return _import(name, globals, locals, fromlist, level)
    full, members = _full_name(name, globals, level), tuple(fromlist or ())
    known = [] if _tried_at(body, ImportError) else [full, *(f'{full}.{member}' for member in members)]
    if full in failed and known:
        return _instead_of(full, _lack(full, failed[full], body), body, members)
    wanted = tuple(member for member in members if f'{full}.{member}' not in failed or not known)
    try:
        module = _import(name, globals, locals, wanted or (members and ('__name__',)), level)
    except FAULTS:
        raise
    except Exception as error:
        if _stays(full, error, body):
            raise
        older = importlib.import_module(OLDER_OPERATORS).older_module(full, body.f_code.co_filename)
        if older is not None and members:
            return older
        if not members or full not in sys.modules:
            return _instead_of(full, _lack_of(full, error, body), body, members)
        module = sys.modules[full]  # one of its members is a module that fails
    found = {
        member: value
        for member in members
        if member != '*' and not _has(module, member) and (value := _member(module, member, body)) is not None
    }
    return Partly(module, found) if found else module


def _gets_stand_ins(body: FrameType) -> bool:
    name = body.f_globals.get('__name__')
    return name != '__main__' and (is_users(body.f_code.co_filename) or name in LIBRARY_MODULES)


def _full_name(name: str, globals: Any, level: int) -> str:
    if not level:
        return name
    package = globals.get('__package__') or globals['__name__'].rpartition('.')[0]
    parents = package.split('.')
    return '.'.join([*parents[: len(parents) - level + 1], *filter(None, [name])])


def _stays(full: str, error: BaseException, body: FrameType) -> bool:
    """Whether an error of an import is raised: in a `try`, of a library, or while a config is read."""
    if place := _tried_at(body, type(error)):
        fallbacks.setdefault(place, getattr(error, 'name', None) or full)
        return True
    frame: FrameType | None = body
    while frame is not None:
        if frame.f_code.co_name == '_file2dict':  # of mmcv, which runs a config
            return True
        frame = frame.f_back
    package = full.partition('.')[0]
    if package not in LIBRARIES:
        return False
    is_copy = is_users(getattr(sys.modules.get(package), '__file__', None) or '')
    return full == package or not (is_copy or _is_absent(full, error))


def _is_absent(full: str, error: BaseException) -> bool:
    name = isinstance(error, ModuleNotFoundError) and error.name
    return bool(name) and f'{full}.'.startswith(f'{name}.')


def _has(module: ModuleType, name: str) -> bool:
    try:
        return hasattr(module, name)
    except Exception:  # of a module that imports its names late
        return False


def _member(module: ModuleType, name: str, body: FrameType) -> Any:
    """A member that the import did not find: a module of its own, or a stand-in; None for the usual error."""
    full = f'{module.__name__}.{name}'
    if full not in failed and hasattr(module, '__path__'):
        try:
            return importlib.import_module(full)
        except FAULTS:
            raise
        except Exception as error:
            if not _is_absent(full, error):
                return StandIn(full, _lack_of(full, error, body))
    if place := _tried_at(body, ImportError):
        fallbacks.setdefault(place, full)
        return None
    older = importlib.import_module(OLDER_OPERATORS).older_member(full, body.f_code.co_filename)
    if older is not None:
        return older
    if full in failed:
        return StandIn(full, _lack(full, failed[full], body))
    is_own = is_users(getattr(module, '__file__', None) or '')
    if is_own and not operator_forms.is_compiled(name, body.f_code.co_filename):
        return None
    reason = operator_forms.NOT_COMPILED if is_own else _without(full)
    return _stand_in(full, _lack(full, reason, body), body)


def _without(full: str) -> str:
    """Reason: an imported package has no such module or name."""
    package = full.partition('.')[0]
    version = getattr(sys.modules.get(package), '__version__', '')
    return ' '.join(filter(None, [package, str(version), f'has no {full}']))


def _lack(name: str, reason: str, body: FrameType) -> Lack:
    lack = Lack(name, reason, _place(body))
    return lacks.setdefault(name, lack) if is_users(body.f_code.co_filename) else lack


def _lack_of(full: str, error: BaseException, body: FrameType) -> Lack:
    name, package = getattr(error, 'name', None) or full, full.partition('.')[0]
    if not _is_absent(full, error):
        _note_failure(full, error)
        return _lack(full, failed[full], body)
    if operator_forms.is_compiled(full.rpartition('.')[2], body.f_code.co_filename):
        return _lack(full, operator_forms.NOT_COMPILED, body)
    file = body.f_code.co_filename
    return _lack(name, not_installed(package, file) if name == package else _without(name), body)


def _stand_in(full: str, lack: Lack, body: FrameType) -> StandIn:
    if lack.reason != operator_forms.NOT_COMPILED:
        return StandIn(full, lack)
    return Extension(full, lack, operator_forms.functions_of(body.f_code.co_filename))


def _instead_of(full: str, lack: Lack, body: FrameType, members: Sequence[str]) -> Any:
    """What an import statement gets in place of a module: for `import a.b` it is `a`."""
    if '*' in members:
        return _starred(full, lack, body)
    owner: Any = _stand_in(full, lack, body)
    if members:
        return owner
    parts = full.split('.')
    for count in range(len(parts) - 1, 0, -1):
        name = '.'.join(parts[:count])
        parent = sys.modules.get(name)
        owner = StandIn(name, lack) if parent is None else Partly(parent, {parts[count]: owner})
    return owner


def _starred(full: str, lack: Lack, body: FrameType) -> ModuleType:
    """A module with the names that the importing module reads and nothing binds."""
    file = body.f_code.co_filename
    waiting = [symtable.symtable(Path(file).read_text(encoding='utf-8'), file, 'exec')]
    bound = {*vars(builtins), *body.f_globals}
    bound |= {
        symbol.get_name()
        for symbol in waiting[0].get_symbols()
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
    }
    names = set()
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_global() or (table.get_type() == 'module' and symbol.is_referenced()):
                names.add(symbol.get_name())
    module = ModuleType(full)
    module.__all__ = sorted(names - bound)
    vars(module).update({name: StandIn(f'{full}.{name}', lack) for name in module.__all__})
    return module


# --- modules that fail


def _note_failure(full: str, error: BaseException) -> None:
    """Note all modules whose bodies an error ended, and withdraw what the user's would have registered."""
    own = [(f, line) for f, line in traceback.walk_tb(error.__traceback__) if is_users(f.f_code.co_filename)]
    raised = f' (raised in {own[-1][0].f_code.co_filename}:{own[-1][1]})' if own else ''
    text = f'fails when it is imported: {type(error).__name__}: {one_line(error)}{raised}'
    failed[full] = f'{full} {text}'
    for frame, line in own:
        if frame.f_code.co_name == '<module>':
            name = frame.f_globals['__name__']
            failed.setdefault(name, f'{name} {text}')
            _withdraw(frame.f_code.co_filename, line, frame.f_globals)


def _withdraw(failing: str, line: int, names: Mapping[str, Any]) -> None:
    """Remove the names that a failed file registers, so that no library's class of that name is built.

    Files that it would have imported behind `line` count, too.
    """
    from mmdeploy_ext.config.unregistered import registries

    waiting, files = [Path(failing)], set()
    while waiting:
        file = waiting.pop()
        if file in files or not file.is_file():
            continue
        files.add(file)
        for node in _parsed(str(file)).body:
            if isinstance(node, ast.ImportFrom) and node.level and (len(files) > 1 or node.lineno > line):
                place = file.parents[node.level - 1].joinpath(*(node.module or '').split('.'))
                inside = ['__init__', *(alias.name for alias in node.names)]
                waiting += [place.with_suffix('.py'), *(place / f'{name}.py' for name in inside)]
            for decorator in getattr(node, 'decorator_list', ()):
                owner, _, _ = ast.unparse(decorator).rpartition('.register_module')
                own = names.get(owner)
                for registry in [own] if hasattr(own, 'module_dict') else registries() if owner else ():
                    registry.module_dict.pop(node.name, None)


# --- stand-ins


class Partly(ModuleType):
    """A module as an import statement gets it: with stand-ins for what it lacks."""

    def __init__(self, module: ModuleType, members: Mapping[str, Any]) -> None:
        super().__init__(module.__name__)
        vars(self).update(_module=module, **members)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)['_module'], name)


@functools.cache
def _exception(path: str) -> type[Exception]:
    module, _, name = path.rpartition('.')
    return type(name, (Exception,), {'__module__': module})


class StandIn:
    """A module or name that is not there.

    While modules are read it can be called, decorate, be derived from, compared and computed with. After that
    any use but `isinstance` and `except` raises AbsentPackageError.
    """

    def __init__(self, path: str, lack: Lack) -> None:
        self._path, self._lack = path, lack

    def _use(self, how: str) -> NoReturn:
        where = users_place(sys._getframe(2)) or self._lack.imported
        self._lack.used = self._lack.used or where
        reason = self._lack.reason
        if reason == operator_forms.NOT_COMPILED:
            file, operator = self._lack.imported.rpartition(':')[0], self._path.rpartition('.')[2]
            reason = f'{operator_forms.missing(file, operator)}; {reason}'
        raise AbsentPackageError(f'{where} {how} {self._path}: {reason}', name=self._lack.name)

    def __getattr__(self, name: str) -> Any:
        if name == '__version__':
            if not _is_importing():
                self._use('reads the version of')
            names = next(_user_frames(sys._getframe(1))).f_globals  # of OpenMMLab, which asserts a highest
            return names.get(f'{self._path}_maximum_version', NEW_ENOUGH)
        if name.startswith('__'):
            raise AttributeError(name)
        path = f'{self._path}.{name}'
        return _exception(path) if name.endswith(('Error', 'Exception')) else StandIn(path, self._lack)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not _is_importing():
            self._use('calls')
        decorated = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(decorated, type):
            return self._unusable(decorated)
        if isinstance(decorated, types.FunctionType):
            name = f'{decorated.__module__}.{decorated.__qualname__}'
            return StandIn(f'{name}, decorated by {self._path}', self._lack)
        return StandIn(f'{self._path}()', self._lack)

    def _unusable(self, decorated: type) -> Any:
        """A class of that name that cannot be built; a plain call with a class leaves the class as it is."""

        def new(cls: type, *args: Any, **kwargs: Any) -> NoReturn:
            self._use(f'builds {cls.__name__}, which is decorated by')

        names = {'__new__': new, '__module__': decorated.__module__, '__qualname__': decorated.__qualname__}
        try:
            return types.new_class(decorated.__name__, (decorated,), {}, lambda body: body.update(names))
        except TypeError:  # of an enumeration, for example
            return StandIn(f'{self._path}()', self._lack)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type]:
        def new(cls: type, *args: Any, **kwargs: Any) -> NoReturn:
            self._use(f'builds {cls.__name__}, which derives from')

        def accept(cls: type, **kwargs: Any) -> None:
            """Take the keywords of any class statement."""

        module, _, name = self._path.rpartition('.')
        names = {'__new__': new, '__init_subclass__': classmethod(accept), '__module__': module}
        return (type(name, (), names),)

    def __get__(self, owner: Any, kind: type | None = None) -> StandIn:
        if owner is not None and not _is_importing():
            self._use('reads')
        return self

    def __instancecheck__(self, value: Any) -> bool:
        return False

    __subclasscheck__ = __instancecheck__
    __hash__ = object.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path, self._lack)

    def __deepcopy__(self, memo: Any) -> StandIn:
        return self

    def __exit__(self, *args: Any) -> bool:
        return False

    def __repr__(self) -> str:
        return f'<stand-in for {self._path}>'


def _at_import(result: Callable[[StandIn, Any], Any] | None) -> Callable[..., Any]:
    def method(self: StandIn, *args: Any) -> Any:
        if result is None or not _is_importing():
            self._use('reads')
        return result(self, args)

    return method


ARITHMETIC = 'getitem add radd sub rsub mul rmul truediv rtruediv floordiv mod pow rpow or ror and rand neg'
for _names, _result in {
    ARITHMETIC: lambda self, args: StandIn(self._path, self._lack),
    'bool': lambda self, args: False,
    'len': lambda self, args: 0,
    'iter': lambda self, args: iter(()),
    'setitem delitem': lambda self, args: None,
    'lt le gt ge': lambda self, args: True,
    'eq': lambda self, args: self is args[0],
    'ne': lambda self, args: self is not args[0],
    'int float index enter': None,
}.items():
    for _name in _names.split():
        setattr(StandIn, f'__{_name}__', _at_import(_result))


class Extension(StandIn):
    """A compiled extension; functions with a form in PyTorch run."""

    def __init__(self, path: str, lack: Lack, functions: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(path, lack)
        self._functions = functions

    def __getattr__(self, name: str) -> Any:
        if name in vars(self).get('_functions', ()):
            return self._functions[name]
        return super().__getattr__(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path, self._lack, self._functions)


@after('torch.utils.cpp_extension', versions='torch 2.13')
def operators_that_are_compiled_at_import(module: ModuleType) -> None:
    """Repositories compile their operators when they are imported, which needs CUDA.

    One that cannot be compiled is a stand-in.
    """
    module.load, module.load_inline = _loaded_later(module.load), _loaded_later(module.load_inline)


def _loaded_later(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def loaded(*args: Any, **kwargs: Any) -> Any:
        users = next(_user_frames(sys._getframe(1)), None)
        if users is None or not _is_importing() or _tried_at(users, OSError):
            return load(*args, **kwargs)
        try:
            return load(*args, **kwargs)
        except Exception as error:
            name = str(kwargs.get('name') or args[0])
            why = f'{type(error).__name__}: {one_line(error)}'
            reason = f'it is compiled at {_place(users)}, and that fails: {why}'
            sources = kwargs.get('sources') or (args[1] if len(args) > 1 else ())
            functions = operator_forms.functions_of_sources(sources)
            return Extension(name, _lack(name, reason, users), functions)

    return loaded
