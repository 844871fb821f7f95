"""Taps: named intermediate tensors of a model, for dumps and the search for the first difference."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

_collector: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    'mm2onnx_taps', default=None
)


def tap(name: str, tensor: Any) -> Any:
    """Return `tensor` unchanged; `collect_taps` records it without a copy."""
    if (collected := _collector.get()) is not None:
        collected[name] = tensor
    return tensor


@contextlib.contextmanager
def collect_taps() -> Iterator[dict[str, Any]]:
    """Yield a dict, name -> tensor, that taps of this thread fill inside the block."""
    collected: dict[str, Any] = {}
    token = _collector.set(collected)
    try:
        yield collected
    finally:
        _collector.reset(token)
