"""Pickles of numbers, texts, containers and arrays, such as the info files of mmdet3d."""

import codecs
import collections
import io
import pickle
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import DataError

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
