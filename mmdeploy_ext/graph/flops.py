"""Arithmetic of a graph, counted from shapes: 2 FLOPs per multiply-add. Needs onnx only.

Counted are convolutions and matrix products, which is where the time of these networks goes; everything else
(activations, sums, resizing, NMS) counts as 0, as most tools have it.
"""

import contextlib
import math
from collections.abc import Callable, Mapping

import onnx

from mmdeploy_ext.graph.io import types

Shape = list[int | str]


def count(model: onnx.ModelProto, kinds: Mapping[str, onnx.TypeProto] | None = None) -> dict[int, int | None]:
    """Return position -> FLOPs of the nodes of the main graph that count; None where shapes are open.

    `kinds` are the types of its tensors, when they were inferred already.
    """
    kinds = types.infer(model) if kinds is None else kinds
    found = {}
    for position, node in enumerate(model.graph.node):
        if node.op_type in RULES:
            inputs = [types.shape(kinds.get(name)) for name in node.input]
            found[position] = None
            with contextlib.suppress(TypeError, IndexError):  # a shape that is not known, or with names
                output = types.shape(kinds.get(node.output[0]))
                found[position] = RULES[node.op_type](node, inputs, output)
    return found


def _product(shape: Shape) -> int:
    if not all(isinstance(size, int) for size in shape):
        raise TypeError('open axis')
    return math.prod(shape)


def _conv(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    """Every output element: the weights of one filter, and its bias."""
    return _product(output) * (2 * _product(inputs[1][1:]) + _has_bias(node))


def _conv_transpose(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    """Every input element is spread with the weights of its channel; then the bias."""
    return 2 * _product(inputs[0]) * _product(inputs[1][1:]) + _has_bias(node) * _product(output)


def _gemm(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    transposed = next((entry.i for entry in node.attribute if entry.name == 'transA'), 0)
    inner = inputs[0][0 if transposed else 1]
    return _product(output) * (2 * _product([inner]) + _has_bias(node))


def _matmul(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    return 2 * _product(output) * _product(inputs[0][-1:])


def _einsum(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    """Every combination of the letters, a multiply-add per operand beyond the first."""
    equation = next(entry.s for entry in node.attribute if entry.name == 'equation').decode().replace(' ', '')
    terms, sizes = equation.split('->')[0].split(','), {}
    for term, shape in zip(terms, inputs, strict=True):
        if '.' in term or len(term) != len(shape):
            raise TypeError('ellipsis')
        sizes.update(zip(term, shape, strict=True))
    return 2 * (len(terms) - 1) * _product(list(sizes.values()))


def _has_bias(node: onnx.NodeProto) -> bool:
    return any(node.input[2:3])


RULES: dict[str, Callable] = {
    **dict.fromkeys(('Conv', 'ConvInteger', 'DeformConv'), _conv),
    **dict.fromkeys(('MatMul', 'MatMulInteger'), _matmul),
    **dict(ConvTranspose=_conv_transpose, Gemm=_gemm, Einsum=_einsum),
    'QLinearConv': lambda node, inputs, output: _product(output) * 2 * _product(inputs[3][1:]),
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
