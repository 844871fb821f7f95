"""Taps: intermediate tensors of a model that have a name.

A model calls `tap` where it computes such a tensor, which does nothing outside of `collect_taps`. A dump
writes them, and the search for the first difference pairs them with tensors of a graph.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

_collector: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    'mm2onnx_taps', default=None
)


def tap(name: str, tensor: Any) -> Any:
    """Return `tensor` unchanged; inside `collect_taps` it is collected by this name, without a copy."""
    if (collected := _collector.get()) is not None:
        collected[name] = tensor
    return tensor


@contextlib.contextmanager
def collect_taps() -> Iterator[dict[str, Any]]:
    """Yield a dict, name -> tensor, that taps fill inside the block; of equal names the last tensor stays.

    Of nested blocks the inner one alone collects; taps in threads that are started inside are not collected.
    """
    collected: dict[str, Any] = {}
    token = _collector.set(collected)
    try:
        yield collected
    finally:
        _collector.reset(token)
