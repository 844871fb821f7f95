"""A rule for `mm2onnx graph replace`: Relu as Max with zero."""

from typing import Any


def pattern(op: Any, x: Any) -> Any:
    """Return the nodes to look for."""
    return op.Relu(x)


def replacement(op: Any, x: Any) -> Any:
    """Return the nodes that take their place."""
    return op.Max(x, op.Constant(value_float=0.0))
