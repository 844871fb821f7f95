"""Arithmetic of a graph, counted from shapes: 2 FLOPs per multiply-add. Needs onnx only.

Counted are convolutions and matrix products, which is where the time of these networks goes; everything else
(activations, sums, resizing, NMS) counts as 0, as most tools have it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import onnx

from mmdeploy_ext.graph.io import types

Shape = list[int | str]
UNFIXED = None
"""What a node costs whose shapes are not fixed numbers."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs of a graph.

    Attributes:
        total: of the nodes that could be counted.
        nodes: position -> FLOPs; None where the operator counts and the shapes are not known.
        unknown: how many of these there are.
    """

    total: int
    nodes: dict[int, int | None]
    unknown: int


def count(model: onnx.ModelProto, kinds: Mapping[str, onnx.TypeProto] | None = None) -> Cost:
    """Count the FLOPs of the nodes of the main graph.

    Args:
        model: with fixed input shapes; open axes make the nodes behind them unknown.
        kinds: tensor -> type, when they were inferred already.
    """
    kinds = types.infer(model) if kinds is None else kinds
    found = {}
    for position, node in enumerate(model.graph.node):
        rule = RULES.get(node.op_type)
        if rule is not None:
            inputs = [types.shape(kinds.get(name)) for name in node.input]
            found[position] = _counted(rule, node, inputs, types.shape(kinds.get(node.output[0])))
    known = [flops for flops in found.values() if flops is not None]
    return Cost(sum(known), found, len(found) - len(known))


def _counted(
    rule: Callable, node: onnx.NodeProto, inputs: list[Shape | None], output: Shape | None
) -> int | None:
    try:
        return rule(node, inputs, output)
    except (TypeError, IndexError):  # a shape that is not known, or whose sizes are names
        return UNFIXED


def _product(shape: Shape) -> int:
    if not all(isinstance(size, int) for size in shape):
        raise TypeError('open axis')
    return math.prod(shape)


def _conv(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    """Every output element: the weights of one filter, and its bias."""
    weight = inputs[1]
    return _product(output) * (2 * _product(weight[1:]) + _has(node, 2))


def _conv_transpose(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    """Every input element is spread with the weights of its channel; then the bias."""
    return 2 * _product(inputs[0]) * _product(inputs[1][1:]) + _has(node, 2) * _product(output)


def _gemm(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    transposed = next((entry.i for entry in node.attribute if entry.name == 'transA'), 0)
    inner = inputs[0][0 if transposed else 1]
    return _product(output) * (2 * _product([inner]) + _has(node, 2))


def _matmul(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    return 2 * _product(output) * _product(inputs[0][-1:])


def _einsum(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    """Every combination of the letters, a multiply-add per operand beyond the first."""
    equation = next(entry.s for entry in node.attribute if entry.name == 'equation').decode().replace(' ', '')
    terms = equation.split('->')[0].split(',')
    sizes = {
        letter: size for term, shape in zip(terms, inputs, strict=True) for letter, size in _axes(term, shape)
    }
    return 2 * (len(terms) - 1) * _product(list(sizes.values()))


def _axes(term: str, shape: Shape) -> list[tuple[str, int | str]]:
    if '.' in term or len(term) != len(shape):
        raise TypeError('ellipsis')
    return list(zip(term, shape, strict=True))


def _has(node: onnx.NodeProto, position: int) -> bool:
    return len(node.input) > position and bool(node.input[position])


RULES: dict[str, Callable] = {
    'Conv': _conv,
    'ConvInteger': _conv,
    'QLinearConv': lambda node, inputs, output: _product(output) * 2 * _product(inputs[3][1:]),
    'DeformConv': _conv,
    'ConvTranspose': _conv_transpose,
    'Gemm': _gemm,
    'MatMul': _matmul,
    'MatMulInteger': _matmul,
    'Einsum': _einsum,
}
"""Operator -> FLOPs from the node, the shapes of its inputs and of its first output."""


def text(flops: int | None) -> str:
    """Return e.g. '2.08 GFLOPs'; '?' for unknown ones."""
    if flops is None:
        return '?'
    for size, unit in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if flops >= size:
            return f'{flops / size:.2f} {unit}FLOPs'
    return f'{flops} FLOPs'
