"""numba's `njit`; without numba the loops run in Python and give the same numbers."""

from collections.abc import Callable
from typing import Any

from mmdeploy_ext.base.files import use_writable_cache

use_writable_cache()
try:
    from numba import njit
except ModuleNotFoundError:

    def njit(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return lambda function: function


__all__ = ['njit']
