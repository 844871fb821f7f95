"""What the user's modules hold outside of models, as it was before the first run. Needs no torch.

These are globals, lists, dicts, sets, deques, attributes of classes and of objects of the user's, and the
variables that functions share with those in them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CellType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any

from mmdeploy_ext.core.source_code import is_users_file

PLAIN = (bool, int, float, complex, str, bytes, type(None))
"""Types of values that are equal if they are not the same object."""
MAX_DEPTH = 5
"""Number of containers in each other that are looked at."""
EMPTY = object()
"""Content of a variable that has no value yet."""


class OuterContainers:
    """The containers of the user's modules but `__main__`, with what they hold now, each value as it is.

    Modules that are imported later are not among them.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[str, Any, Any]] = []
        self._seen: dict[int, Any] = {}  # kept, so that no other has the same id
        self._modules = {
            name: module
            for name, module in [*sys.modules.items()]
            if name != '__main__' and type(module) is ModuleType and _is_users(module)
        }
        for name, module in self._modules.items():
            fields = vars(module)
            self._add(name, fields)
            for key, value in [*fields.items()]:
                self._walk(f'{name}.{key}', value, MAX_DEPTH)

    def _add(self, title: str, holder: Any) -> None:
        self._entries.append((title, holder, _content(holder)))

    def _walk(self, title: str, value: Any, depth: int) -> None:
        if not depth or isinstance(value, PLAIN) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        is_container = isinstance(value, CellType | dict | list | set | deque)
        if is_container or self._is_users_class(value) or self._has_users_slots(value):
            self._add(title, value)
        for name, entry in self._inner(value):
            self._walk(f'{title}.{name}' if name else title, entry, depth - 1)

    def _is_users_class(self, value: Any) -> bool:
        return isinstance(value, type) and value.__module__ in self._modules

    def _has_users_slots(self, value: Any) -> bool:
        return type(value).__module__ in self._modules and bool(slot_names(type(value)))

    def _inner(self, value: Any) -> list[tuple[str, Any]]:
        """Return what a value holds, with the names of attributes of a class, else ''."""
        if self._is_users_class(value):
            return [(name, getattr(entry, '__func__', entry)) for name, entry in vars(value).items()]
        entries: Iterable[Any] = ()
        if isinstance(value, FunctionType) and value.__module__ in self._modules:
            entries = *(value.__closure__ or ()), vars(value)
        elif isinstance(value, CellType):
            entries = [_content(value)]
        elif isinstance(value, dict):
            entries = value.values()
        elif isinstance(value, list | set | deque | tuple):
            entries = value
        elif type(value).__module__ in self._modules:
            fields = [vars(value)] if hasattr(value, '__dict__') else []
            entries = [*fields, *slot_values(value).values()]
        return [('', entry) for entry in entries]

    def changed(self) -> list[tuple[str, Any, Any]]:
        """Return name, container and earlier content of those that hold something else now.

        That is another object, unless both are of `PLAIN` and equal, or the entries of a set in another
        order.
        """
        return [entry for entry in self._entries if not _are_same(_content(entry[1]), entry[2])]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Let the containers that have changed hold inside the block what they held at first.

        After the block they hold again what they held before it. The others are left as they are.
        """
        changed = self.changed()
        later = [_content(holder) for _, holder, _ in changed]
        for _, holder, content in changed:
            _fill(holder, content)
        try:
            yield
        finally:
            for (_, holder, _), content in zip(changed, later, strict=True):
                _fill(holder, content)


def comparable(
    entries: list[tuple[str, Any, Any]], content_of: Callable[[Any], Any]
) -> dict[tuple[str, int, str], Any]:
    """Return name, index and key -> what can be compared of the values that were not there at first.

    `entries` are those of `OuterContainers.changed`; the index is that of a container among them, since those
    in a list or a dict have one name. `content_of` makes of a value what can be compared. Keys are those of
    dicts and names of attributes, by `repr`; lists, sets and variables of functions have one for all they
    hold, ''. A key that is gone now is not in the result.
    """
    values = {}
    for index, (title, holder, before) in enumerate(entries):
        content = _content(holder)
        if isinstance(content, dict) and isinstance(before, dict):
            for key, value in content.items():
                if not _are_same(value, before.get(key, EMPTY)):
                    values[title, index, repr(key)] = content_of(value)
        elif not _are_same(content, before):
            values[title, index, ''] = content_of(content)
    return values


def _is_users(module: ModuleType) -> bool:
    file = getattr(module, '__file__', None)
    return bool(file) and _is_users_folder(os.path.dirname(file))


@functools.lru_cache(maxsize=8192)
def _is_users_folder(folder: str) -> bool:
    """Return whether the files of a folder are the user's, which is found once for thousands of modules."""
    return is_users_file(Path(folder, 'any.py'))


def slot_names(kind: type) -> list[str]:
    """Return the names of a class' attributes of `__slots__` and of those of its bases.

    They are as `getattr` takes them: a private `__count` of a class `Memory` is `_Memory__count`.
    """
    return [
        name
        for base in kind.__mro__
        if '__slots__' in vars(base)
        for name, entry in vars(base).items()
        if isinstance(entry, MemberDescriptorType)
    ]


def slot_values(value: Any) -> dict[str, Any]:
    """Return name -> value of the attributes of `__slots__` that an object has now."""
    values = {}
    for name in slot_names(type(value)):
        with contextlib.suppress(AttributeError):  # of one that has no value yet
            values[name] = object.__getattribute__(value, name)
    return values


def _content(holder: Any) -> Any:
    """Return the values that a container holds, in a container of its own."""
    if isinstance(holder, CellType):
        try:
            return holder.cell_contents
        except ValueError:
            return EMPTY
    if isinstance(holder, type):
        return {name: value for name, value in vars(holder).items() if not name.startswith('__')}
    if isinstance(holder, dict):
        is_module = '__builtins__' in holder
        return {
            key: value
            for key, value in holder.items()
            if not (is_module and (isinstance(value, ModuleType) or str(key).startswith('__')))
        }
    return list(holder) if isinstance(holder, list | set | deque) else slot_values(holder)


def _fill(holder: Any, content: Any) -> None:
    """Let a container hold some content."""
    if isinstance(holder, CellType):
        if content is EMPTY:
            del holder.cell_contents
        else:
            holder.cell_contents = content
    elif isinstance(holder, list | set | deque):
        holder.clear()
        (holder.update if isinstance(holder, set) else holder.extend)(content)
    else:
        current = _content(holder)
        if isinstance(holder, dict):
            remove, put = holder.__delitem__, holder.__setitem__
        else:  # not by `setattr`, which a class can refuse, as frozen data classes do
            owner = type if isinstance(holder, type) else object
            remove = functools.partial(owner.__delattr__, holder)
            put = functools.partial(owner.__setattr__, holder)
        for key in current.keys() - content.keys():
            remove(key)
        for key, value in content.items():
            if current.get(key, EMPTY) is not value:
                put(key, value)


def _are_same(value: Any, earlier: Any) -> bool:
    if value is earlier:
        return True
    if isinstance(value, dict) and isinstance(earlier, dict):
        return value.keys() == earlier.keys() and all(
            _is_same_value(entry, earlier[key]) for key, entry in value.items()
        )
    if isinstance(value, list) and isinstance(earlier, list):
        return len(value) == len(earlier) and all(map(_is_same_value, value, earlier))
    return _is_same_value(value, earlier)


def _is_same_value(value: Any, earlier: Any) -> bool:
    is_equal = type(value) is type(earlier) and isinstance(value, PLAIN) and value == earlier
    return value is earlier or is_equal
