"""Arithmetic of a graph, counted from shapes: 2 FLOPs per multiply-add. Needs onnx only.

Counted are convolutions and matrix products, which is where the time of these networks goes; everything else
(activations, sums, resizing, NMS) counts as 0, as most tools have it.
"""

import math
from collections.abc import Mapping

import onnx

from mmdeploy_ext.graph.io import types

Shape = list[int | str] | None
"""Sizes of a tensor: numbers, names of open axes; None if even the rank is unknown."""
OPERATORS = (
    'Conv',
    'ConvInteger',
    'ConvTranspose',
    'DeformConv',
    'Einsum',
    'Gemm',
    'MatMul',
    'MatMulInteger',
    'QLinearConv',
)
"""Operators that are counted."""
BIAS_PLACES = {'ConvInteger': 4, 'DeformConv': 3, 'QLinearConv': 8}
"""Operator -> place of its bias, if that is not the third input; ConvInteger has none, and four inputs."""


def count(
    model: onnx.ModelProto, tensor_types: Mapping[str, onnx.TypeProto] | None = None
) -> dict[int, int | None]:
    """Return position of a node -> its FLOPs, of the nodes of the main graph that are `OPERATORS`.

    Domains are not looked at. The value is None if shapes are open, and for an Einsum with an ellipsis. A
    bias counts one FLOP per output element. `tensor_types` is tensor name -> type, if `types.infer` gave it
    already; None if not.
    """
    tensor_types = types.infer(model) if tensor_types is None else tensor_types
    flops: dict[int, int | None] = {}
    for position, node in enumerate(model.graph.node):
        if node.op_type in OPERATORS:
            inputs = [types.shape(tensor_types.get(name)) for name in node.input]
            output = types.shape(tensor_types.get(node.output[0]))
            try:
                flops[position] = _node_flops(node, inputs, output)
            except (TypeError, IndexError):  # an unknown shape, or one with names
                flops[position] = None
    return flops


def _node_flops(node: onnx.NodeProto, inputs: list[Shape], output: Shape) -> int:
    """Return the FLOPs of a node; raise TypeError or IndexError if a shape is unknown or has names."""
    bias_place = BIAS_PLACES.get(node.op_type, 2)
    has_bias = any(node.input[bias_place : bias_place + 1])
    match node.op_type:
        case (
            'Conv' | 'ConvInteger' | 'DeformConv'
        ):  # per output element the weights of one filter, and its bias
            return _product(output) * (2 * _product(inputs[1][1:]) + has_bias)
        case 'QLinearConv':
            return _product(output) * (2 * _product(inputs[3][1:]) + has_bias)
        case 'ConvTranspose':  # every input element is spread with the weights of its channel; then the bias
            return 2 * _product(inputs[0]) * _product(inputs[1][1:]) + has_bias * _product(output)
        case 'Gemm':
            is_transposed = any(entry.i for entry in node.attribute if entry.name == 'transA')
            inner = inputs[0][0 if is_transposed else 1]
            return _product(output) * (2 * _product([inner]) + has_bias)
        case 'Einsum':  # every combination of the letters, a multiply-add per operand beyond the first
            equation = next(entry.s for entry in node.attribute if entry.name == 'equation').decode()
            terms, sizes = equation.replace(' ', '').split('->')[0].split(','), {}
            for term, shape in zip(terms, inputs, strict=True):
                if '.' in term or len(term) != len(shape):
                    raise TypeError('ellipsis')
                sizes.update(zip(term, shape, strict=True))
            return 2 * (len(terms) - 1) * _product(list(sizes.values()))
        case _:  # MatMul, MatMulInteger
            return 2 * _product(output) * _product(inputs[0][-1:])


def _product(shape: Shape) -> int:
    if not all(isinstance(size, int) for size in shape):
        raise TypeError('open axis')
    return math.prod(shape)


def text(flops: int | None) -> str:
    """Return e.g. '2.08 GFLOPs' or '12 FLOPs', in powers of 1000; '?' for None, if the number is unknown."""
    if flops is None:
        return '?'
    for size, unit in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if flops >= size:
            return f'{flops / size:.2f} {unit}FLOPs'
    return f'{flops} FLOPs'
