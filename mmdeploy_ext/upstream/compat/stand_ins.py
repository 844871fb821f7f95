"""Stand-ins for what the user's modules import and this machine lacks, see `imports`.

The first use after the imports raises AbsentPackageError in one line.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NoReturn

from mmdeploy_ext.base.errors import AbsentPackageError
from mmdeploy_ext.upstream.compat.patches_vendored import is_importing, users_frames, users_place

NEW_ENOUGH = '99.0.0'
"""Version of what is not there."""


@dataclasses.dataclass
class Lack:
    """What a stand-in stands for.

    Attributes:
        name: 'wandb', 'torch.onnx.symbolic_registry'.
        reason: why it is not there, and what to do.
        imported: FILE:LINE of the first import.
        used: FILE:LINE of the first use, or ''.
    """

    name: str
    reason: str | Callable[[str], str]
    imported: str
    used: str = ''


lacks: dict[str, Lack] = {}
"""Name -> what modules of the user's got a stand-in for in this process."""
fallbacks: dict[str, str] = {}
"""What imports in a `try` of the user's did not find -> FILE:LINE of the first."""
failed: dict[str, str] = {}
"""Module that failed when a module of the user's imported it -> why."""


withdrawn: list[tuple[Any, str, type]] = []
"""Registry, name and class that a failed file would have replaced."""


def forget() -> None:
    """Forget what this process has read so far, for tests."""
    for entries in (lacks, fallbacks, failed):
        entries.clear()
    for registry, name, cls in withdrawn:
        registry.module_dict.setdefault(name, cls)
    withdrawn.clear()


class Partly(ModuleType):
    """A module as an import statement gets it: with stand-ins for what it lacks."""

    def __init__(self, module: ModuleType, members: Mapping[str, Any]) -> None:
        super().__init__(module.__name__)
        vars(self).update(_module=module, **members)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)['_module'], name)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self).pop(name, None)
        setattr(vars(self)['_module'], name, value)


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
        reason = reason if isinstance(reason, str) else reason(self._path.rpartition('.')[2])
        raise AbsentPackageError(f'{where} {how} {self._path}: {reason}', name=self._lack.name)

    def __getattr__(self, name: str) -> Any:
        if name == '__version__':
            if not is_importing(sys._getframe(1)):
                self._use('reads the version of')
            names = next(users_frames(sys._getframe(1))).f_globals  # of OpenMMLab, which asserts a highest
            return names.get(f'{self._path}_maximum_version', NEW_ENOUGH)
        if name.startswith('__'):
            raise AttributeError(name)
        path = f'{self._path}.{name}'
        return _exception(path) if name.endswith(('Error', 'Exception')) else StandIn(path, self._lack)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not is_importing(sys._getframe(1)):
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
        if owner is not None and not is_importing(sys._getframe(1)):
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
        if result is None or not is_importing(sys._getframe(1)):
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
        member = super().__getattr__(name)
        is_stand_in = type(member) is StandIn  # perhaps the extension that a module which failed compiles
        return Extension(member._path, self._lack, self._functions) if is_stand_in else member

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path, self._lack, self._functions)
