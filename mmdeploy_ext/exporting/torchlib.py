"""The translations of the dynamo exporter, read once per process instead of once per stage.

torch 2.13 parses the sources of onnxscript's 500 functions at every `torch.onnx.export`: 0.5 s of CPU time,
most of what a small stage takes.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


_known: dict[tuple[int, ...], Any] = {}
"""Opset, if one was asked for -> the registry of its translations."""


@contextlib.contextmanager
def translations_read_once() -> Iterator[None]:
    """Inside the block each export gets a registry of its own, filled from one that was read before."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    original = vars(ONNXRegistry)['from_torchlib']

    def from_torchlib(cls: type[ONNXRegistry], **opset: int) -> ONNXRegistry:
        key = (*opset.values(),)
        if key not in _known:
            _known[key] = original.__func__(cls, **opset)
        registry = copy.copy(_known[key])
        registry.functions = {target: [*known] for target, known in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = classmethod(from_torchlib)
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = original
