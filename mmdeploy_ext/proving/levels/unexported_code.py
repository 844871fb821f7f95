"""The user's code that decides results of PyTorch, and that no export ran, so that inputs have to judge.

A fresh export runs as much of the user's code as the export of a file did: what both left out is in neither
graph. It is a layer that a graph computes by itself, a way that PyTorch takes outside of an export alone, or
a value that a layer keeps from run to run.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import linecache
from types import FunctionType
from typing import TYPE_CHECKING, Any

from mmcv import ConfigDict

from mmdeploy_ext.core.foreign_functions import is_foreign, python_functions
from mmdeploy_ext.core.source_code import codes_in, source_of_code
from mmdeploy_ext.core.users_code import attributes_read, attributes_written
from mmdeploy_ext.families.module_settings import module_settings, settings
from mmdeploy_ext.proving.levels.user_model import first_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import CodeType

    from torch import nn

    from mmdeploy_ext.core.users_code import RanCode

ALONE, KEPT, SET = 'is run by PyTorch alone', 'changes from run to run', 'is set by a run'
RESTS = {ALONE: 'the export does not run it', SET: 'the graph has the value that it had before'}


@dataclasses.dataclass(frozen=True)
class UnexportedCode:
    """A function, a line or an attribute of the user's code that a graph may not have.

    Attributes:
        name: `MyNeck.forward`, `my/neck.py:8`, or `MyNeck.calls`.
        why: `ALONE` of functions and lines, `KEPT` of attributes, `SET` of settings.
        place: file and lines of a function, text of a line, or the module that has an attribute, as 'module
            neck' or 'the detector'; of a setting its new and its old value before the module.
    """

    name: str
    why: str
    place: str

    @property
    def reason(self) -> str:
        """Why inputs decide, in a few words for the claim of a verdict."""
        return f'{self.name} {self.why}'

    @property
    def text(self) -> str:
        """The sentence of the verdict about it."""
        rest = RESTS.get(self.why, 'a graph keeps nothing of it')
        return f'{self.reason} ({self.place}); {rest}'


def unexported_code(
    reference: RanCode, export: RanCode, followed: Iterable[Callable[..., Any]]
) -> list[UnexportedCode]:
    """Return the functions and lines of the user's code that PyTorch ran, and no export.

    A function that the export ran at all is not an entry itself, its lines are. Of lines of one function that
    follow each other only the first is an entry; one that the export ran in part, as of `a if b else c`, is
    one, too (`RanCode.lines_beside`). Functions inside of one that has an entry have none.

    Args:
        reference: what PyTorch's side of a proof ran.
        export: what the export of all graphs ran.
        followed: functions that a verdict names by itself if they differ, see `Family.followed_functions`.
    """
    left_out = {id(code) for function in followed for code in codes_in(function.__code__)}
    entries: list[UnexportedCode] = []
    for key, (code, module) in reference.codes.items():
        if key in left_out:
            continue
        lines = reference.lines_beside(export, key)
        if lines:
            left_out |= {id(inner) for inner in codes_in(code)}  # which run after it
        if key not in export.codes:
            source = source_of_code(code, module)
            place = f'{source.file} lines {source.first}-{source.last}' if source.first else source.file
            entries.append(UnexportedCode(code.co_qualname, ALONE, place))
            continue
        for line in lines:
            file = source_of_code(code, module).file
            text = linecache.getline(code.co_filename, line).strip()
            entries.append(UnexportedCode(f'{file}:{line}', ALONE, f'`{text}`'))
    return list(dict.fromkeys(entries))


def users_settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return name of a module -> its settings, of modules whose class has methods of the user's code.

    Settings are those of `module_settings`: attributes, also plain tensors, whose names do not begin with an
    underscore, and those of objects that a module holds; names of hooks, and of functions in the place of
    methods; buffers that no checkpoint has.
    """
    users = {name for name, module in model.named_modules() if any(_methods(module, of_user=True))}
    return {name: entry for name, (_, entry) in module_settings(model).items() if name in users}


def kept_attributes(
    model: nn.Module, before: Mapping[str, Mapping[str, Any]], followed: Iterable[Callable[..., Any]]
) -> list[UnexportedCode]:
    """Return the attributes of modules of the user's classes that runs change, and that their methods read.

    Those that the `followed` functions use, or libraries and this package write, are left out: they are the
    memories that the families know. Attributes whose names begin with an underscore are not seen, nor
    buffers, which `users_settings` has in one entry that no attribute is named by.

    Args:
        model: the model after several runs.
        before: its `users_settings` after the first run, which fills what is computed once.
        followed: as in `unexported_code`.
    """
    codes = [code for function in followed for code in codes_in(function.__code__)]
    of_families = set().union(*map(attributes_read, codes), *map(attributes_written, codes))
    modules, entries = dict(model.named_modules()), []
    for name, after in users_settings(model).items():
        module, earlier = modules[name], before.get(name, {})
        changed = {key for key, value in after.items() if earlier.get(key, ...) != value}
        if not changed:
            continue
        read = set().union(*map(attributes_read, _methods(module, of_user=True)))
        of_libraries = of_families.union(*map(attributes_written, _methods(module, of_user=False)))
        place = f'module {name}' if name else 'the detector'
        for key in sorted(changed & read - of_libraries):
            entries.append(UnexportedCode(f'{type(module).__name__}.{key}', KEPT, place))
    return list(dict.fromkeys(entries))


def changed_settings(
    model: nn.Module, loaded: Mapping[str, tuple[str, dict[str, Any]]]
) -> list[UnexportedCode]:
    """Return the settings in objects and configs of a model, such as `test_cfg`, that runs have changed.

    Graphs have them as they were: what computes by them, such as a suppression, is not the user's code. What
    an object other than a config holds in addition, such as a cache, does not count, nor does what was None,
    nor a plain dict that is an attribute of a module, which holds a memory. Dicts inside of objects do.

    Args:
        model: the model after its runs.
        loaded: its `module_settings` before.
    """
    entries: list[UnexportedCode] = []
    for name, module in model.named_modules():
        for key, before in loaded.get(name, ('', {}))[1].items():
            value = vars(module).get(key)
            if isinstance(value, dict) and not isinstance(value, ConfigDict):
                continue  # a memory, such as that of BEVFormer's last frame
            after = settings(value, depth=2) if isinstance(before, dict) else before
            if not isinstance(after, dict):
                continue
            if not isinstance(value, ConfigDict):
                before, after = _common(before, after), _common(after, before)
            if after != before:
                difference = first_difference(after, before)
                place = f'module {name}' if name else 'the detector'
                path, _, values = difference.partition(' is ')
                change = values.replace(', expected ', ' in place of ')
                entries.append(
                    UnexportedCode(f'{type(module).__name__}.{key}{path}', SET, f'{change}, {place}')
                )
    return list(dict.fromkeys(entries))


def _common(entries: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return those entries, also of dicts in them, that `second` has, too, without those that are None."""
    common = {}
    for key, value in entries.items():
        second_value = second.get(key)
        if value is None or second_value is None:
            continue
        are_dicts = isinstance(value, dict) and isinstance(second_value, dict)
        common[key] = _common(value, second_value) if are_dicts else value
    return common


def _methods(module: nn.Module, of_user: bool) -> Iterator[CodeType]:
    """Yield the code of the methods of a module's classes that the user's code has, or of the others.

    Those behind decorators, and what properties call, are among them.
    """
    for base in type(module).__mro__:
        for value in vars(base).values():
            for function in _functions_of(value):
                if is_foreign(function) == of_user:
                    yield from codes_in(function.__code__)


def _functions_of(attribute: Any) -> list[FunctionType]:
    """Return the Python functions that an attribute of a class stands for, such as those of a decorator.

    A decorator of the user's that leaves no `__wrapped__` has the function that it wraps in its closure.
    """
    if isinstance(attribute, property):
        attribute = attribute.fget
    elif isinstance(attribute, functools.cached_property):
        attribute = attribute.func
    attribute = getattr(attribute, '__func__', attribute)  # of a class method, which is not called itself
    waiting, functions = [attribute], []
    while waiting:
        for function in python_functions(waiting.pop()):
            if function not in functions:
                functions.append(function)
                captured = gc.get_referents(*function.__closure__ or ()) if is_foreign(function) else ()
                waiting += [value for value in captured if isinstance(value, FunctionType)]
    return functions


def codes_of_methods(model: nn.Module) -> set[int]:
    """Return the ids of the code objects of the methods of a model and its parts, and of inner functions.

    Those that decorators wrap and that properties call are among them. By these ids a caller tells what the
    model's parts ran from the other entries of `RanCode.codes`.
    """
    modules = model.modules()
    return {id(code) for module in modules for of_user in (True, False) for code in _methods(module, of_user)}
