"""Pickles of numbers, texts, containers and arrays, such as the info files of mmdet3d."""

from __future__ import annotations

import codecs
import collections
import io
import mmap
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.base.files import AnyPath


# Protobuf's wire format: fields of a message, and the metadata of an ONNX file, read without onnx.


METADATA = 14
"""Field of onnx.ModelProto."""
SIZES = {1: 8, 5: 4}
"""Wire type of a number -> bytes."""


def _varint(content: Any, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def fields(content: Any) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number of each field of a message, where it starts, and where its content begins and ends.

    LookupError or ValueError: it is no message, or cut short.
    """
    place = 0
    while place < len(content):
        start, tag = place, content[place]
        begin = place = place + 1
        if tag > 127:
            tag, begin = _varint(content, start)
            place = begin
        if tag & 7 == 2:
            size, begin = _varint(content, place)
            place = begin + size
        elif tag & 7 == 0:
            _, place = _varint(content, place)
        else:
            place += SIZES[tag & 7]
        if tag < 8 or place > len(content):
            raise ValueError(f'field {tag >> 3} at byte {start} is none, or cut short')
        yield tag >> 3, start, begin, place


def entry(content: bytes) -> dict[int, bytes]:
    """Return key (1) and value (2) of an entry of metadata."""
    return {number: bytes(content[begin:end]) for number, _, begin, end in fields(content)}


def metadata_of(path: AnyPath) -> dict[str, str]:
    """Return `metadata_props` of an ONNX file; LookupError or ValueError: it is none."""
    with open(path, 'rb') as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = [entry(content[begin:end]) for number, _, begin, end in fields(content) if number == METADATA]
    return {one.get(1, b'').decode(): one.get(2, b'').decode() for one in found}


ARRAY = np.zeros(1)
NUMPY_FUNCTIONS = dict(
    _reconstruct=ARRAY.__reduce__()[0], scalar=ARRAY[0].__reduce__()[0], _frombuffer=ARRAY.__reduce_ex__(5)[0]
)
"""NumPy's rebuilding functions, which NumPy 2 has in other modules."""
ALLOWED = {
    ('_codecs', 'encode'): codecs.encode,  # bytes of protocols 0 to 2
    ('collections', 'OrderedDict'): collections.OrderedDict,
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    **{
        (module, value.__name__): value
        for module in ('builtins', '__builtin__')  # of Python 3 and 2
        for value in (bytes, bytearray, set, frozenset, complex)
    },
    **{
        (f'numpy.{core}.{module}', name): function
        for core in ('core', '_core')
        for module in ('multiarray', 'numeric')
        for name, function in NUMPY_FUNCTIONS.items()
    },
}
"""(module, name) -> object that a pickle may refer to."""


class PlainUnpickler(pickle.Unpickler):
    """Raises DataError outside of `allowed`; `refused` of a subclass may return a value instead."""

    allowed = ALLOWED

    def find_class(self, module: str, name: str) -> Any:
        found = self.allowed.get((module, name))
        return self.refused(f'{module}.{name}') if found is None else found

    def refused(self, path: str) -> Any:
        raise DataError(f'names {path}, which is not read: it could run code; expected plain infos')


def loads(content: bytes) -> Any:
    """Read a pickle of plain data (texts of Python 2 as Latin-1); DataError: it refers to anything else."""
    return PlainUnpickler(io.BytesIO(content), encoding='latin1').load()
