"""Ten faults that are put into an ONNX file, of the kinds that exporters, graph tools and hands have made."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.graph.diff.program import Constants, Program

if TYPE_CHECKING:
    from collections.abc import Sequence

PRODUCTS = {'Conv': 1, 'ConvTranspose': 1, 'Gemm': 1, 'MatMul': 1}
"""Operator with weights -> place of its weights."""
ACTIVATIONS = ('Relu', 'HardSwish', 'HardSigmoid', 'Gelu', 'Erf', 'Tanh', 'Sigmoid')


class NotApplicableError(Exception):
    """The file has nothing that this fault could be made of."""


def weights(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Return the weights of products that are initializers, in the order of the nodes."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in PRODUCTS]
    names = dict.fromkeys(node.input[PRODUCTS[node.op_type]] for node in nodes)
    return [initializers[name] for name in names if name in initializers]


def weight_at(graph: onnx.GraphProto, place: float) -> onnx.TensorProto:
    """Return a weight by its place among all: 0 is the first one, 1 the last one."""
    tensors = weights(graph)
    return tensors[int(place * (len(tensors) - 1))]


def write(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    """Give an initializer other values of the same type."""
    dtype = numpy_helper.to_array(tensor).dtype
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, dtype), tensor.name))


def nodes_of(graph: onnx.GraphProto, *operators: str) -> list[onnx.NodeProto]:
    """Return the nodes of some operators; NotApplicableError if there is none."""
    nodes = [node for node in graph.node if node.op_type in operators]
    if not nodes:
        raise NotApplicableError
    return nodes


def scaled_weight(graph: onnx.GraphProto) -> None:
    """Scale a weight by 1.01."""
    tensor = weight_at(graph, 0.3)
    write(tensor, numpy_helper.to_array(tensor) * 1.01)


def changed_value(graph: onnx.GraphProto) -> None:
    """Add the largest value of a weight to its first one."""
    tensor = weight_at(graph, 0.6)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += np.abs(array).max()
    write(tensor, array)


def swapped_rows(graph: onnx.GraphProto) -> None:
    """Swap the first two rows of a weight."""
    tensor = weight_at(graph, 0.9)
    array = numpy_helper.to_array(tensor)
    if len(array) < 2:
        raise NotApplicableError
    write(tensor, array[[1, 0, *range(2, len(array))]])


def reversed_channels(graph: onnx.GraphProto) -> None:
    """Reverse the input channels of the first convolution, as if pictures were RGB for BGR."""
    for tensor in weights(graph):
        if len(tensor.dims) == 4 and tensor.dims[1] == 3:
            write(tensor, numpy_helper.to_array(tensor)[:, ::-1])
            return
    raise NotApplicableError


def negated_bias(graph: onnx.GraphProto) -> None:
    """Negate the bias with the largest value in the second half of the file."""
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ('Conv', 'Gemm', 'Add')]
    names = [name for node in nodes[len(nodes) // 2 :] for name in node.input if name in initializers]
    biases = [initializers[name] for name in names if len(initializers[name].dims) == 1]
    biases = [tensor for tensor in biases if tensor.data_type == onnx.TensorProto.FLOAT]
    sizes = [float(np.abs(numpy_helper.to_array(tensor)).max()) for tensor in biases]
    if not sizes or max(sizes) == 0:
        raise NotApplicableError
    tensor = biases[sizes.index(max(sizes))]
    write(tensor, -numpy_helper.to_array(tensor))


def shifted_pads(graph: onnx.GraphProto) -> None:
    """Pad above and left only, as TensorFlow's SAME does at stride 2."""
    for node in reversed(nodes_of(graph, 'Conv', 'MaxPool')):
        for attribute in node.attribute:
            if attribute.name == 'pads' and list(attribute.ints) == [1, 1, 1, 1]:
                attribute.ints[:] = [2, 2, 0, 0]
                return
    raise NotApplicableError


def dropped_activation(graph: onnx.GraphProto) -> None:
    """Leave out the activation in the middle of the file."""
    nodes = nodes_of(graph, *ACTIVATIONS)
    node = nodes[len(nodes) // 2]
    node.op_type, node.domain = 'Identity', ''
    del node.attribute[:]


def swapped_operands(graph: onnx.GraphProto) -> None:
    """Subtract or divide the other way round, in the middle of the file.

    Nodes that depend on nothing but shapes are no choice: with one size they often compute 1 / 1.
    """
    static = Program(onnx.ModelProto(graph=graph), Constants()).static
    nodes = [node for node in nodes_of(graph, 'Sub', 'Div') if node.output[0] not in static]
    if not nodes:
        raise NotApplicableError
    node = nodes[len(nodes) // 2]
    node.input[:] = [*reversed(node.input)]


def reversed_concat(graph: onnx.GraphProto) -> None:
    """Join the parts of the last Concat in reverse order."""
    node = nodes_of(graph, 'Concat')[-1]
    node.input[:] = [*reversed(node.input)]


def changed_scalar(graph: onnx.GraphProto) -> None:
    """Change the last constant of floats that is one value, such as a threshold or an epsilon, by 20 %."""
    for node in reversed(graph.node):
        for attribute in node.attribute if node.op_type == 'Constant' else ():
            if attribute.name == 'value' and _is_threshold(attribute.t):
                write(attribute.t, numpy_helper.to_array(attribute.t) * 0.8)
                return
    for tensor in reversed(graph.initializer):
        if _is_threshold(tensor):
            write(tensor, numpy_helper.to_array(tensor) * 0.8)
            return
    raise NotApplicableError


def _is_threshold(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return False
    array = numpy_helper.to_array(tensor)
    return array.size == 1 and np.isfinite(array).all() and float(array.flat[0]) not in (0.0, 1.0)


def other_axis(graph: onnx.GraphProto) -> None:
    """Take a Softmax, or an ArgMax, along another axis."""
    node = nodes_of(graph, 'Softmax', 'ArgMax', 'LogSoftmax')[-1]
    attribute = next((entry for entry in node.attribute if entry.name == 'axis'), None)
    if attribute is None:
        raise NotApplicableError
    attribute.i = 0


def flipped_kernel(graph: onnx.GraphProto) -> None:
    """Reverse the last axis of a weight in the middle of the file that has more than one value along it."""
    tensors = [tensor for tensor in weights(graph) if tensor.dims[-1] > 1]
    tensor = tensors[len(tensors) // 2]
    write(tensor, numpy_helper.to_array(tensor)[..., ::-1])


def zeroed_row(graph: onnx.GraphProto) -> None:
    """Set the first row of a weight to zero."""
    tensor = weight_at(graph, 0.75)
    array = numpy_helper.to_array(tensor).copy()
    array[0] = 0
    write(tensor, array)


def pooled_mean(graph: onnx.GraphProto) -> None:
    """Take the mean for the maximum of a pooling, or the other way round."""
    node = nodes_of(graph, 'MaxPool', 'GlobalAveragePool')[0]
    node.op_type = {'MaxPool': 'AveragePool', 'GlobalAveragePool': 'GlobalMaxPool'}[node.op_type]
    names = ('kernel_shape', 'strides', 'pads', 'ceil_mode')
    attributes = [copy.deepcopy(entry) for entry in node.attribute if entry.name in names]
    del node.attribute[:]
    node.attribute.extend(attributes)


def scaled_result(graph: onnx.GraphProto) -> None:
    """Multiply the first output of floats by 1.001."""
    output = next(
        value for value in graph.output if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    )
    for node in graph.node:
        node.output[:] = [f'{name}_before' if name == output.name else name for name in node.output]
        node.input[:] = [f'{name}_before' if name == output.name else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(np.float32(1.001), 'one'))
    graph.node.append(helper.make_node('Mul', [f'{output.name}_before', 'one'], [output.name]))


FAULTS = (
    scaled_weight, changed_value, swapped_rows, negated_bias, shifted_pads, dropped_activation,
    swapped_operands, reversed_channels, changed_scalar, reversed_concat, pooled_mean, other_axis,
    scaled_result, flipped_kernel, zeroed_row,
)  # fmt: skip
"""A file gets the first ten of them that can be made of it."""


def faulty_models(
    model: onnx.ModelProto, left_out: Sequence[str] = (), count: int = 10
) -> dict[str, onnx.ModelProto]:
    """Return name of a fault -> copy of the model with it, of the first faults that can be made of it.

    `left_out` names faults that are none in this model; `count` is how many there are at most.
    """
    models: dict[str, onnx.ModelProto] = {}
    for fault in FAULTS:
        if len(models) == count:
            break
        if fault.__name__ in left_out:
            continue
        faulty = onnx.ModelProto.FromString(model.SerializeToString())
        try:
            fault(faulty.graph)
        except NotApplicableError:
            continue
        models[fault.__name__] = faulty
    return models
