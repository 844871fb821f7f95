"""Decorators for toys that are made once per arguments, given ones or those left to their defaults."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def made_once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `make` once per arguments."""
    signature, cached = inspect.signature(make), functools.cache(make)

    @functools.wraps(make)
    def call(*args: Any, **options: Any) -> Any:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        return cached(*bound.args, **bound.kwargs)

    return call


def copied(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `make` once per arguments, and gives a copy of its own to each caller."""
    made = made_once(make)

    @functools.wraps(make)
    def call(*args: Any, **options: Any) -> Any:
        return copy.deepcopy(made(*args, **options))

    return call
