"""Pickles of numbers, texts, containers and arrays, read without running anything that they name.

Such are the info files of mmdet3d's data sets. Protocols 0 to 5 of Python 2 and 3, arrays of NumPy 1 and 2.
Needs numpy only.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PLAIN_TYPE = re.compile(r'(b1|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[SU]\d{1,9}|O[48]?)')
"""Names of the types of arrays that are read: truth values, numbers, texts of a fixed size, and objects.

The objects are plain values again."""


class StoredType:
    """Stand for a `numpy.dtype` of a pickle: its name and its byte order.

    NumPy would take the rest of its state from the pickle, too, which could claim that raw bytes are objects.
    """

    def __init__(self, name: Any, *flags: Any) -> None:
        """Take the arguments of `numpy.dtype`: the name, such as 'f4', is kept, the flags are not."""
        self._name, self._order = str(name).removeprefix('|'), ''

    def __setstate__(self, state: Any) -> None:
        """Take the byte order, the second entry of the state; the rest follows from the name."""
        self._order = state[1] if state[1] in ('<', '>') else ''

    def dtype(self) -> np.dtype:
        """Return the type with its byte order; DataError: its name does not match `PLAIN_TYPE`."""
        if not PLAIN_TYPE.fullmatch(self._name):
            raise DataError(f'has an array of type {self._name!r}, expected numbers, texts or plain objects')
        return np.dtype(object if self._name[0] == 'O' else f'{self._order}{self._name}')


class StoredArray:
    """Stand for a `numpy.ndarray` of a pickle until its values are there."""

    values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        """Take what NumPy has written: version, shape, type, whether in Fortran's order, and the values.

        DataError: the type is none that infos have, or the values are damaged; ValueError: they do not fit.
        """
        shape, stored, fortran, content = state[-4:]
        self.values = _array(content, stored, shape, 'F' if fortran else 'C')


def loads(content: bytes) -> Any:
    """Return what the bytes of a pickle hold: numbers, texts, bytes, containers, NumPy's arrays and types.

    Arrays are copies that can be written to. Texts of Python 2 are read as Latin-1. Complex numbers of Python
    are refused, those of NumPy are read. Two things that infos do not have come back in another form: an
    array or a type of NumPy that is a key of a dict, in a set, or in a tuple that contains itself stays a
    `StoredArray` or `StoredType`; and a name of `STAND_INS` that is a value, such as the class `set` itself,
    is a function.

    Raises:
        DataError: it names something else than containers and arrays, and might run code; or an array in it
            has a type that infos have no use for, or is damaged.
        Exception: it is damaged in another way; almost any kind.
    """
    _check_memo(content)
    return _Plain().of(_Unpickler(io.BytesIO(content), encoding='latin1').load())


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, each time a new one: a pickle can set attributes of it."""
        function = STAND_INS.get((module, name))
        if function is None:
            raise DataError(
                f'names {module}.{name}, which is not read: it could run code; expected plain infos'
            )
        return lambda *values: function(*values)


def _array(content: Any, stored: Any, shape: Any, order: str) -> np.ndarray:
    """Return the array of raw bytes in an order, 'C' or 'F', or of a list of objects, whose order is C's."""
    if not isinstance(stored, StoredType):
        raise DataError('has an array without a type; it is damaged')
    dtype = stored.dtype()
    if isinstance(content, str):  # of Python 2
        content = content.encode('latin1')
    if dtype.hasobject:
        if not isinstance(content, list):
            raise DataError('has an array of objects without its objects; it is damaged')
        values = np.empty(len(content), object)
        for index, value in enumerate(content):
            values[index] = value
        return values.reshape(shape)
    values = np.frombuffer(content, dtype).copy() if len(content) else np.empty(0, dtype)
    return values.reshape(shape, order=order)


def _buffered_array(content: Any, stored: Any, shape: Any, order: str, axes: Any = None) -> StoredArray:
    """Return the array of protocol 5; `axes` is the order of the axes in memory, of NumPy 2.3."""
    array = StoredArray()
    array.values = _array(content, stored, shape, 'C' if order == 'K' else order)
    if order == 'K' and axes is not None:
        array.values = array.values.transpose(axes)
    return array


def _scalar(stored: Any, content: Any) -> Any:
    """Return a number or text of NumPy; an empty text has a type of no bytes, which no array has."""
    if isinstance(stored, StoredType) and stored.dtype().itemsize == 0 and not content:
        return stored.dtype().type()
    return _array(content, stored, (1,), 'C')[0]


def _bytes(text: str = '', encoding: str = 'latin1') -> bytes:
    """Return bytes: protocols 0 to 2 keep them as text."""
    if encoding not in ('latin1', 'latin-1'):
        raise DataError(f'has bytes in {encoding!r}, expected latin1')
    if not isinstance(text, str | bytes | bytearray | list):
        raise DataError(f'has bytes made of {type(text).__name__}, expected a text; it is damaged')
    return text.encode('latin1') if isinstance(text, str) else bytes(text)


STAND_INS: Mapping[tuple[str, str], Callable] = {
    ('_codecs', 'encode'): _bytes,
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('numpy', 'ndarray'): StoredArray,
    ('numpy', 'dtype'): StoredType,
    **{
        (builtins, name): function
        for builtins in ('builtins', '__builtin__')
        for name, function in dict(
            bytes=_bytes,
            bytearray=lambda *values: bytearray(_bytes(*values)),
            set=set,
            frozenset=frozenset,
        ).items()
    },
    **{
        (f'numpy.{core}.{module}', name): function
        for core in ('core', '_core')
        for module, name, function in (
            ('multiarray', '_reconstruct', lambda *ignored: StoredArray()),
            ('multiarray', 'scalar', _scalar),
            ('numeric', '_frombuffer', _buffered_array),
        )
    },
}
"""What a pickle may name, by module and name, and what stands for it: no function of NumPy itself."""


class _Plain:
    """Replaces stand-ins by arrays; an object that occurs twice stays one object."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        """Return a value of a pickle with its arrays."""
        if isinstance(value, StoredArray):
            return self._array(value)
        if isinstance(value, StoredType):
            return value.dtype()
        if not isinstance(value, dict | list | tuple):
            return value
        if id(value) not in self._done:
            self._done[id(value)] = value  # a list may hold itself
            if isinstance(value, dict):
                for key, item in value.items():
                    value[key] = self.of(item)
            elif isinstance(value, list):
                value[:] = [self.of(item) for item in value]
            else:
                self._done[id(value)] = tuple(self.of(item) for item in value)
        return self._done[id(value)]

    def _array(self, stored: StoredArray) -> np.ndarray:
        if stored.values is None:
            raise DataError('has an array without values; it is damaged')
        if stored.values.dtype == object and id(stored) not in self._done:
            self._done[id(stored)] = stored
            for index, item in np.ndenumerate(stored.values):
                stored.values[index] = self.of(item)
        return stored.values


def _by_length(length: int | None) -> bytes:
    """Return the regular expression of the opcodes whose argument has `length` bytes; None: has none."""
    codes = [
        op.code.encode('latin1')
        for op in pickletools.opcodes
        if (op.arg.n if op.arg else None) == length and op.name not in ('STOP', 'LONG_BINPUT')
    ]
    return b'[' + b''.join(map(re.escape, codes)) + b']'


SHORT = b'|'.join([_by_length(None), *(_by_length(size) + b'.{%d}' % size for size in (1, 2, 4, 8))])
"""Regular expression of one opcode with an argument of a fixed length, or without one: most of them."""
LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
"""Kind of an argument that begins with its length -> number of bytes that hold the length."""
LONG = {
    op.code.encode('latin1')[0]: LENGTHS.get(op.arg.n, 0)
    for op in pickletools.opcodes
    if op.arg and op.arg.n < 0
}
"""Opcode with an argument of any length -> number of bytes that hold the length; 0 for a line of text."""
PUT, TWO_LINES, MOST_DIGITS = b'p'[0], b'ci', 20
"""Opcode that numbers an object by a line of text, opcodes with two lines, and digits of such a number."""


def _up_to(largest: int) -> bytes:
    """Return the regular expression of numbers of four bytes, the lowest first, up to the largest."""
    top = min(largest, 2**32 - 1).to_bytes(4, 'little')
    alternatives = [re.escape(top)]
    for index, byte in enumerate(top):
        if byte:  # smaller here, equal in the bytes above, anything below
            below = b'[\\x00-\\x%02x]' % (byte - 1)
            alternatives.append(b'.{%d}%s%s' % (index, below, re.escape(top[index + 1 :])))
    return b'|'.join(alternatives)


def _check_memo(content: bytes) -> None:
    """Refuse a pickle that numbers an object higher than the pickle has bytes.

    Python's reader keeps numbered objects in a table, of 16 bytes for each number up to the highest: it takes
    16 times the memory of the pickle at most.
    """
    short = re.compile(b'(?:%s|r(?:%s))*+' % (SHORT, _up_to(len(content))), re.DOTALL)
    place = 0
    while True:
        place = short.match(content, place).end()
        opcode = content[place : place + 1]
        if opcode == b'r' and place + 5 <= len(content):  # else the reader reports that it is cut off
            raise DataError('numbers an object higher than there are bytes; it is damaged')
        if not opcode or opcode[0] not in LONG:
            return  # the end, or what the reader refuses
        place += 1
        if size := LONG[opcode[0]]:
            place += size + int.from_bytes(content[place : place + size], 'little')
            continue
        for _ in range(2 if opcode in TWO_LINES else 1):
            start, place = place, content.find(b'\n', place) + 1
            if not place:
                return
        if opcode[0] == PUT:
            number = content[start : start + MOST_DIGITS + 1].partition(b'\n')[0].strip()
            if len(number) > MOST_DIGITS or not number.isdigit() or int(number) > len(content):
                raise DataError('numbers an object higher than there are bytes; it is damaged')
