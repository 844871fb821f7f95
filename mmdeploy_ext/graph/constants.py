"""Every constant of a file, whatever holds it: initializers, nodes, attributes, bodies, functions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from onnx import AttributeProto, helper, numpy_helper

from mmdeploy_ext.graph.index import all_graphs, all_nodes, reads

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

VALUE_TYPES = {
    AttributeProto.FLOAT: np.float32,
    AttributeProto.FLOATS: np.float32,
    AttributeProto.INT: np.int64,
    AttributeProto.INTS: np.int64,
}
"""Types of a Constant node's attribute that is no tensor -> type of the values."""
QUANTISED = {
    'DequantizeLinear': (0,),
    'QuantizeLinear': (0,),
    'QLinearConv': (0, 3),
    'QLinearMatMul': (0, 3),
    'ConvInteger': (0, 1),
    'MatMulInteger': (0, 1),
}
"""Operators of quantised models -> places of the inputs that are values; the others are scales and zeros."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """One constant.

    Attributes:
        name: of the initializer, of the Constant node, or of the node and its attribute.
        tensor: the tensor that nodes read; '' for an attribute of another node.
        array: its values; those of a sparse one without their places.
        is_input: the default value of a graph input.
        is_live: it may reach an output.
        is_sparse: values without their places.
    """

    name: str
    tensor: str
    array: np.ndarray
    is_input: bool = False
    is_live: bool = True
    is_sparse: bool = False


def tensor_values(tensor: onnx.TensorProto) -> np.ndarray:
    """Return the values of a tensor, whatever field holds them."""
    return numpy_helper.to_array(tensor)


def dense_values(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """Return a sparse tensor as a dense array; its places are numbers of elements, or coordinates."""
    values, places = tensor_values(sparse.values), tensor_values(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    if places.ndim == 1:
        array.reshape(-1)[places] = values
    else:
        array[tuple(places.T)] = values
    return array


def constant_value(node: onnx.NodeProto) -> np.ndarray | None:
    """Return what a Constant node holds, None for another node or a value that only its caller knows."""
    if node.op_type != 'Constant' or node.domain not in ('', 'ai.onnx') or len(node.attribute) != 1:
        return None
    (entry,) = node.attribute
    if entry.ref_attr_name:
        return None
    value = helper.get_attribute_value(entry)
    if entry.type == AttributeProto.TENSOR:
        return tensor_values(value)
    if entry.type == AttributeProto.SPARSE_TENSOR:
        return dense_values(value)
    return np.asarray(value, VALUE_TYPES.get(entry.type, object))


def constants(model: onnx.ModelProto) -> Iterator[Constant]:
    """Yield every constant of a model except single numbers and integers in attributes."""
    live, inputs = _live(model), {value.name for value in model.graph.input}
    for graph in all_graphs(model):
        is_main = graph is model.graph
        for tensor in getattr(graph, 'initializer', ()):
            is_input = is_main and tensor.name in inputs
            array = numpy_helper.to_array(tensor)
            yield Constant(tensor.name, tensor.name, array, is_input, not is_main or tensor.name in live)
        for sparse in getattr(graph, 'sparse_initializer', ()):
            name = sparse.values.name
            yield Constant(name, name, numpy_helper.to_array(sparse.values), is_sparse=True)
        for node in graph.node:
            is_live = not is_main or not live.isdisjoint(node.output)
            for constant in _of_node(node):
                yield dataclasses.replace(constant, is_live=is_live)


def _live(model: onnx.ModelProto) -> set[str]:
    """Return the tensors of the main graph that outputs depend on."""
    needed = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(reads(node))
    return needed


def _of_node(node: onnx.NodeProto) -> Iterator[Constant]:
    is_constant = node.op_type == 'Constant'
    for attribute in node.attribute:
        name = node.name or node.output[0]
        name = name if is_constant else f'{name}.{attribute.name}'
        for array, is_sparse in _arrays(attribute, is_constant):
            yield Constant(name, node.output[0] if is_constant else '', array, is_sparse=is_sparse)


def _arrays(attribute: onnx.AttributeProto, is_constant: bool) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield the values of one attribute, and whether they are those of a sparse tensor."""
    kind, value = attribute.type, helper.get_attribute_value(attribute)
    if kind in (AttributeProto.TENSOR, AttributeProto.TENSORS):
        for tensor in [value] if kind == AttributeProto.TENSOR else value:
            yield numpy_helper.to_array(tensor), False
    elif kind in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
        for sparse in [value] if kind == AttributeProto.SPARSE_TENSOR else value:
            yield numpy_helper.to_array(sparse.values), True
    elif kind == AttributeProto.FLOATS:
        yield np.array(value, np.float32), False
    elif is_constant and kind in (AttributeProto.INTS, AttributeProto.STRINGS):
        yield np.array(value, np.int64 if kind == AttributeProto.INTS else object), False


def quantised(model: onnx.ModelProto) -> list[str]:
    """Return the constants that operators of quantised models take for values."""
    fixed = {constant.tensor for constant in constants(model)} - {''}
    read = {
        node.input[place]
        for node in all_nodes(model)
        for place in QUANTISED.get(node.op_type, ())
        if place < len(node.input)
    }
    return sorted(read & fixed)


def read_only_by(model: onnx.ModelProto, kind: str) -> set[str]:
    """Return the values that nodes of one type read, and neither another node nor an output does."""
    readers: dict[bool, set[str]] = {True: set(), False: set()}
    for graph in all_graphs(model):
        for value in graph.output:
            readers[False].add(value if isinstance(value, str) else value.name)
        for node in graph.node:
            readers[node.op_type == kind].update(node.input)
    return readers[True] - readers[False]
