"""Dataclasses written to JSON and read back by their annotations.

Annotations are evaluated: import them at run time.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mmdeploy_ext.base.errors import ConfigError, ModelFileError

if TYPE_CHECKING:
    from typing import Self

LARGEST = 1e30
"""Largest number that is read: times pixels it still fits float32."""
DEEPEST = 100
"""Lists and dicts inside of each other; functions that walk through values call themselves."""
SCALARS = str, int, float, type(None)
LEFT_OUT = 'left_out'
"""Key in a field's `metadata`, see `optional`."""


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text from a file; ValueError: not JSON, or nested deeper than `DEEPEST`."""
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError('nested too deeply') from error
    values, depth = [content], 0
    while values:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f'nested more than {DEEPEST} levels deep')
        inner = [value.values() if isinstance(value, dict) else value for value in values]
        values = [one for items in inner if not isinstance(items, SCALARS) for one in items]
    return content


class Mismatch(ConfigError):
    """A value that its annotation or `check` forbids."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Smallest and largest number, or number of entries of a tuple."""

    minimum: float = -LARGEST
    maximum: float = LARGEST
    above: float | None = None

    def __contains__(self, number: float) -> bool:
        return self.minimum <= number <= self.maximum and (self.above is None or number > self.above)

    def __str__(self) -> str:
        limits = (
            (f'of at least {self.minimum:g}', self.minimum > -LARGEST),
            (f'above {self.above or 0:g}', self.above is not None),
            (f'of at most {self.maximum:g}', self.maximum < LARGEST),
        )
        return ' and '.join(text for text, is_stated in limits if is_stated)


def optional(default: Any = None) -> Any:
    """A field with a key that JSON leaves out at its default."""
    return dataclasses.field(default=default, metadata={LEFT_OUT: True})


@dataclasses.dataclass(frozen=True)
class JsonDataclass:
    """Base of frozen dataclasses with a JSON form.

    Lists become tuples, whole numbers of float fields floats. Mismatch names a wrong value.
    """

    def __post_init__(self) -> None:
        annotations = _annotations(type(self))
        for field in dataclasses.fields(self):
            value = read(annotations[field.name], getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Raise Mismatch if fields do not go together."""

    def to_json(self) -> dict[str, Any]:
        return plain(self)

    @classmethod
    def from_json(cls, content: Any, path: object = 'the file') -> Self:
        try:
            return read(cls, content)
        except Mismatch as error:
            raise ModelFileError(f'{path}: {error}; export it again') from error


def plain(value: Any) -> Any:
    """Convert dataclasses to dicts and tuples to lists."""
    if dataclasses.is_dataclass(value):
        entries = {}
        for field in dataclasses.fields(value):
            entry = getattr(value, field.name)
            if not (field.metadata.get(LEFT_OUT) and entry == field.default):
                entries[field.name] = plain(entry)
        return entries
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def read(annotation: Any, value: Any, key: str = '') -> Any:
    """Convert a JSON value to its annotation; `key` is its place for Mismatch."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        if isinstance(value, annotation):
            return value
        return _read_dataclass(annotation, value, key)
    if origin is Annotated:
        return _read_bounded(*arguments, value, key)
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, value, key)
    if origin is tuple:
        return _read_tuple(arguments, value, key)
    if origin is Mapping:
        _require(isinstance(value, Mapping), value, key, 'a dict')
        return {name: read(arguments[1], item, _below(key, name)) for name, item in value.items()}
    if origin is Literal:
        is_choice = any(type(value) is type(choice) and value == choice for choice in arguments)
        _require(is_choice, value, key, ' or '.join(map(repr, arguments)))
        return value
    return _read_scalar(annotation, value, key)


def _read_scalar(annotation: Any, value: Any, key: str) -> Any:
    if annotation is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        _require(is_number and -LARGEST <= value <= LARGEST, value, key, 'a finite number')
        return float(value)
    titles = {int: 'a whole number', bool: 'true or false', str: 'a text', types.NoneType: 'null'}
    _require(annotation is Any or type(value) is annotation, value, key, titles.get(annotation, ''))
    return value


def _read_bounded(annotation: Any, bounds: Bounds, value: Any, key: str) -> Any:
    result = read(annotation, value, key)
    if isinstance(result, tuple):
        _require(len(result) in bounds, value, key, f'a list with a length {bounds}')
    else:
        _require(result in bounds, value, key, f'a number {bounds}')
    return result


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _read_dataclass(cls: Any, value: Any, key: str) -> Any:
    _require(isinstance(value, Mapping), value, key, 'a dict')
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name, field in fields.items():
        if name not in value and not field.metadata.get(LEFT_OUT):
            raise Mismatch(f'{key} has no {name!r}'.lstrip())
    for name in value:
        if name not in fields:
            raise Mismatch(f'{_below(key, name)} is not known; expected {", ".join(fields)}')
    entries = {name: read(_annotations(cls)[name], item, _below(key, name)) for name, item in value.items()}
    return cls(**entries)


def _read_tuple(items: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    _require(isinstance(value, list | tuple), value, key, 'a list')
    if items[-1:] == (...,):
        items = items[:1] * len(value)
    _require(len(items) == len(value), value, key, f'a list of {len(items)} values')
    return tuple(
        read(item, entry, f'{key}[{index}]')
        for index, (item, entry) in enumerate(zip(items, value, strict=True))
    )


def _read_union(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        dataclasses_ = tuple(choice for choice in choices if dataclasses.is_dataclass(choice))
        if dataclasses_:
            return read(_dataclass_of(dataclasses_, value, key), value, key)
    errors = []
    for choice in choices:
        try:
            return read(choice, value, key)
        except Mismatch as error:
            errors.append(str(error))  # a kept error keeps all frames below it, and their models
    raise Mismatch(max(errors, key=lambda text: len(text.partition(' ')[0])))  # of the innermost key


def _dataclass_of(choices: tuple[Any, ...], value: Mapping[str, Any], key: str) -> Any:
    by_type = {name: choice for choice in choices for name in _types_of(choice)}
    if not by_type:
        return min(choices, key=lambda choice: len(value.keys() ^ _annotations(choice).keys()))
    kind = value.get('type')
    _require(kind in [*by_type], kind, _below(key, 'type'), ' or '.join(map(repr, by_type)))
    return by_type[kind]


def _types_of(cls: Any) -> tuple[str, ...]:
    return typing.get_args(_annotations(cls).get('type'))


def _require(is_right: bool, value: Any, key: str, expected: str) -> None:
    if not is_right:
        got = repr(value)
        got = got if len(got) <= 60 else f'{got[:57]}...'
        raise Mismatch(f'{key} is {got}, expected {expected}'.lstrip())


def _below(key: str, name: object) -> str:
    return f'{key}.{name}' if key else str(name)
