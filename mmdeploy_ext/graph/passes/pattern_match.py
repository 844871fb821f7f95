"""When a node is what a pattern says: its attributes with their defaults, and constants that are numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from mmdeploy_ext.graph.io.schemas import defaults_of

if TYPE_CHECKING:
    from onnx_ir import Node, Value

TOLERANCE = 1e-6
"""Of numbers, as a part of them: text has fewer digits than float32."""


def number_check(expected: float) -> Callable:
    """Return a check that a tensor is a constant of one value; inputs with a default are none."""

    def check(context: Any, value: Value) -> bool:
        del context
        if value is None or value.const_value is None or value.is_graph_input():
            return False
        array = value.const_value.numpy()
        return array.size == 1 and math.isclose(
            float(array.reshape(())), expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE * TOLERANCE
        )

    return check


def attribute_check(node: onnx.NodeProto, opsets: dict[str, int]) -> Callable:
    """Return a check that a node has the pattern's attributes and no other, but for defaults."""
    free = {item.name for item in node.attribute if item.ref_attr_name}
    given = [item for item in node.attribute if item.name not in free]
    wanted = {item.name: helper.get_attribute_value(item) for item in given}
    defaults = defaults_of(node, opsets)

    def check(context: Any, found: Node) -> bool:
        del context
        values = {name: item.value for name, item in found.attributes.items()}
        got = {name: value.numpy() if hasattr(value, 'numpy') else value for name, value in values.items()}
        names = (wanted.keys() | got.keys()) - free
        sides = [[side.get(name, defaults.get(name)) for side in (got, wanted)] for name in names]
        return all(_same(*pair) for pair in sides)

    return check


def _same(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    if isinstance(left, bytes | str) or isinstance(right, bytes | str):
        return _text(left) == _text(right)
    left, right = (
        onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
        for value in (left, right)
    )
    if left.dtype.kind in 'OSU' or right.dtype.kind in 'OSU':
        return [_text(item) for item in left.ravel()] == [_text(item) for item in right.ravel()]
    return left.shape == right.shape and np.allclose(left, right, rtol=TOLERANCE, atol=0, equal_nan=True)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
