"""A rule for `mm2onnx graph replace`: Relu as Max with zero."""

from typing import Any


def pattern(op: Any, x: Any) -> Any:
    return op.Relu(x)


def replacement(op: Any, x: Any) -> Any:
    return op.Max(x, op.Constant(value_float=0.0))
