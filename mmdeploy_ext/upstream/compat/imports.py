"""Import statements of the user's modules get stand-ins for what is not there, see `stand_ins`.

They do so in the body of a module, for an absent module, a missing name, or a module of the user's that
fails, unless a `try` surrounds the statement. Libraries, functions, `find_spec` and `import_module` get the
truth, and nothing of it is in `sys.modules`.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import importlib.util
import symtable
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from mmdeploy_ext.base.errors import UsageError, one_line
from mmdeploy_ext.base.missing_packages import not_installed
from mmdeploy_ext.base.source_code import OURS
from mmdeploy_ext.upstream.compat import operator_forms as forms
from mmdeploy_ext.upstream.compat.import_hook import after
from mmdeploy_ext.upstream.compat.patches_vendored import (
    is_importing,
    is_users,
    parsed,
    place,
    tried_at,
    users_frames,
)
from mmdeploy_ext.upstream.compat.stand_ins import (
    Extension,
    Lack,
    Partly,
    StandIn,
    failed,
    fallbacks,
    lacks,
    withdrawn,
)

LIBRARIES = ('torch', 'torchvision', 'numpy', 'mmcv', 'mmdet', 'mmdet3d', 'mmseg', OURS.name)
"""Packages that have to be there, and whose own modules have to run."""
LIBRARY_MODULES = ('mmdet3d.core.evaluation.lyft_eval', 'mmdet3d.datasets.lyft_dataset')
"""Modules of libraries that get stand-ins: of lyft_dataset_sdk, which pins libraries of 2019."""
TWICE = 'is already registered'
"""Part of the message of mmcv's registries."""
OLDER_MODULES = 'mmdet3d.ops', 'torch.onnx.symbolic_registry'


def offer() -> None:
    """Give stand-ins to modules of the user's that are imported from now on."""
    builtins.__import__ = import_


_import = builtins.__import__


def import_(
    name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
) -> Any:
    """Import as `__import__` does; statements of the user's modules get stand-ins for what is not there."""
    body = sys._getframe(1)
    is_statement = globals is body.f_globals and not isinstance(fromlist, list)  # or a call, by C as well
    if body.f_code.co_name != '<module>' or not is_statement or not _gets_stand_ins(body):
        return _import(name, globals, locals, fromlist, level)
    package = body.f_globals.get('__package__') or body.f_globals.get('__name__', '').rpartition('.')[0]
    full, members = importlib.util.resolve_name('.' * level + name, package), tuple(fromlist or ())
    failing = {full, *(f'{full}.{member}' for member in members)} & failed.keys()
    if failing and tried_at(body, ImportError):
        failing = set()
    if full in failing:
        return _instead_of(StandIn(full, _lack(full, failed[full], body)), body, members)
    wanted = tuple(member for member in members if f'{full}.{member}' not in failing)
    try:
        module = _import(name, globals, locals, wanted or (members and ('__name__',)), level)
    except Exception as error:
        if _stays(full, error, body):
            raise
        if members and (older := _older('older_module', full, body)) is not None:
            return older
        if not members or full not in sys.modules:
            return _instead_of(_stand_in(full, error, body), body, members)
        module = sys.modules[full]  # one of its members is a module that fails
    found = {
        member: value
        for member in members
        if member != '*' and not _has(module, member) and (value := _member(module, member, body)) is not None
    }
    return Partly(module, found) if found else module


def _gets_stand_ins(body: FrameType) -> bool:
    name = body.f_globals.get('__name__')
    return name not in (None, '__main__') and (is_users(body.f_code.co_filename) or name in LIBRARY_MODULES)


def _stays(full: str, error: BaseException, body: FrameType) -> bool:
    """Whether an error of an import is raised: in a `try`, of a library, while a config is read, a fault."""
    if taken := tried_at(body, type(error)):
        _note_fallback(getattr(error, 'name', None) or full, taken)
        return True
    if isinstance(error, UsageError | SyntaxError) or TWICE in str(error):
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


def _note_fallback(name: str, place: str) -> None:
    if name.partition('.')[0] not in sys.stdlib_module_names:  # names of Python 2
        fallbacks.setdefault(name, place)


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
        except Exception as error:
            if not _is_absent(full, error):
                if _stays(full, error, body):
                    raise
                return _stand_in(full, error, body)
    if taken := tried_at(body, ImportError):
        _note_fallback(full, taken)
        return None
    if (older := _older('older_member', full, body)) is not None:
        return older
    if full in failed:
        return _of_failed(full, body)
    if is_users(getattr(module, '__file__', None) or ''):
        return _extension(full, body)
    return StandIn(full, _lack(full, _without(full), body))


def _extension(full: str, body: FrameType) -> Extension | None:
    """A compiled extension that is not there, or None: no sources of such an extension are near."""
    file = body.f_code.co_filename
    name = full.rpartition('.')[2]
    if not forms.is_compiled(name, file):
        return None
    lack = _lack(full, functools.partial(_not_compiled, file, name), body)
    return Extension(full, lack, forms.functions_of(file, name))


def _not_compiled(file: str, extension: str, operator: str) -> str:
    return f'{forms.missing(file, operator, extension)}; {forms.NOT_COMPILED}'


def _older(find: str, full: str, body: FrameType) -> Any:
    """A name that mmdet3d had before 1.0, or torch.onnx before 1.13, or None."""
    if not full.startswith(OLDER_MODULES):
        return None
    from mmdeploy_ext.upstream.compat import older_operators  # it needs PyTorch

    return getattr(older_operators, find)(full, body.f_code.co_filename)


def _without(full: str) -> str:
    """Reason: an imported package has no such module or name."""
    package = full.partition('.')[0]
    version = getattr(sys.modules.get(package), '__version__', '')
    return ' '.join(filter(None, [package, str(version), f'has no {full}']))


def _lack(name: str, reason: str | Callable[[str], str], body: FrameType) -> Lack:
    lack = Lack(name, reason, place(body))
    return lacks.setdefault(name, lack) if is_users(body.f_code.co_filename) else lack


def _stand_in(full: str, error: BaseException, body: FrameType) -> StandIn:
    """The stand-in of a module whose import raised an error."""
    name, package = getattr(error, 'name', None) or full, full.partition('.')[0]
    if not _is_absent(full, error):
        _note_failure(full, error)
        return _of_failed(full, body)
    if (extension := _extension(full, body)) is not None:
        return extension
    reason = not_installed(package, body.f_code.co_filename) if name == package else _without(name)
    return StandIn(full, _lack(name, reason, body))


def _of_failed(full: str, body: FrameType) -> StandIn:
    """The stand-in of a module that failed; operators that it would have compiled run by their forms."""
    lack = _lack(full, failed[full], body)
    try:
        origin = getattr(importlib.util.find_spec(full), 'origin', None)
    except (ImportError, ValueError):  # of a module below one that failed
        origin = None
    functions = forms.functions_of(origin) if origin and is_users(origin) else {}
    return Extension(full, lack, functions) if functions else StandIn(full, lack)


def _instead_of(stand_in: StandIn, body: FrameType, members: Sequence[str]) -> Any:
    """What an import statement gets in place of a module: for `import a.b` it is `a`."""
    if '*' in members:
        return _starred(stand_in, body)
    if members:
        return stand_in
    owner: Any = stand_in
    full, lack = stand_in._path, stand_in._lack
    parts = full.split('.')
    for count in range(len(parts) - 1, 0, -1):
        name = '.'.join(parts[:count])
        parent = sys.modules.get(name)
        owner = StandIn(name, lack) if parent is None else Partly(parent, {parts[count]: owner})
    return owner


def _starred(stand_in: StandIn, body: FrameType) -> ModuleType:
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
    module = ModuleType(stand_in._path)
    module.__all__ = sorted(names - bound)
    vars(module).update({name: getattr(stand_in, name) for name in module.__all__})
    return module


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

    Files that it would have imported behind `line`, and nothing else has, count, too.
    """
    from mmdeploy_ext.base.unregistered import registries

    seen = {getattr(module, '__file__', None) for module in list(sys.modules.values())} - {failing}
    waiting = [Path(failing)]
    while waiting:
        file = waiting.pop()
        if str(file) in seen or not file.is_file():
            continue
        seen.add(str(file))
        for node in parsed(str(file)).body:
            is_unread = str(file) != failing or node.lineno > line
            if isinstance(node, ast.ImportFrom) and node.level and is_unread:
                place = file.parents[node.level - 1].joinpath(*(node.module or '').split('.'))
                inside = ['__init__', *(alias.name for alias in node.names)]
                waiting += [place.with_suffix('.py'), *(place / f'{name}.py' for name in inside)]
            for decorator in getattr(node, 'decorator_list', ()):
                owner, _, _ = ast.unparse(decorator).rpartition('.register_module')
                own = names.get(owner)
                for registry in [own] if hasattr(own, 'module_dict') else registries() if owner else ():
                    if node.name in registry.module_dict:
                        withdrawn.append((registry, node.name, registry.module_dict.pop(node.name)))


@after('torch.utils.cpp_extension', versions='torch 2.13')
def operators_that_are_compiled_at_import(module: ModuleType) -> None:
    """Repositories compile their operators when they are imported, which needs CUDA.

    One that cannot be compiled is a stand-in.
    """
    module.load, module.load_inline = _loaded_later(module.load), _loaded_later(module.load_inline)


def _loaded_later(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def loaded(*args: Any, **kwargs: Any) -> Any:
        users = next(users_frames(sys._getframe(1)), None)
        if users is None or not is_importing(users) or tried_at(users, OSError):
            return load(*args, **kwargs)
        try:
            return load(*args, **kwargs)
        except Exception as error:
            name = str(kwargs.get('name') or args[0])
            why = f'{type(error).__name__}: {one_line(error)}'
            reason = f'compiling it at {place(users)} fails: {why}'
            sources = kwargs.get('sources') or (args[1] if len(args) > 1 else ())
            return Extension(name, _lack(name, reason, users), forms.functions_of_sources(sources))

    return loaded
