"""Named intermediate tensors. A tap costs nothing by default; dump mode and graph diff collect them."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

_collector: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    'mm2onnx_taps', default=None
)


def tap(name: str, tensor: Any) -> Any:
    """Give `tensor` the name `name` and return it unchanged."""
    if (collected := _collector.get()) is not None:
        collected[name] = tensor
    return tensor


@contextlib.contextmanager
def collect_taps() -> Iterator[dict[str, Any]]:
    """Collect all taps that are passed inside the block: name -> the last tensor."""
    collected: dict[str, Any] = {}
    token = _collector.set(collected)
    try:
        yield collected
    finally:
        _collector.reset(token)
