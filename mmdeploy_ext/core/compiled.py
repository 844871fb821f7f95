"""`njit` of numba, which compiles loops; without numba they run in Python.

numba is installed with this package. `mm2onnx judge` runs beside an engine, though, where there may be numpy
alone: of these loops it takes the suppression of rotated boxes, which takes Python tens of seconds for two
sweeps. Both give the same numbers, since the loops state the types that they compute in.
"""

from collections.abc import Callable
from typing import Any

try:
    from numba import njit
except ModuleNotFoundError:

    def njit(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that leaves a function as it is; `options` are those of numba."""
        return lambda function: function


__all__ = ['njit']
