"""The values of constants, however a file holds them."""

import copy

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from mmdeploy_ext.graph.io.index import refill

VALUE_TYPES = {
    **dict.fromkeys((AttributeProto.FLOAT, AttributeProto.FLOATS), np.float32),
    **dict.fromkeys((AttributeProto.INT, AttributeProto.INTS), np.int64),
}
"""Types of a Constant node's attribute that is no tensor -> type of the values."""


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


def constants_to_initializers(graph: onnx.GraphProto, kind: int | None = None) -> None:
    """Make initializers of what Constant nodes hold, in place; of one data type alone where it is given."""
    tensors = [constant_tensor(node) for node in graph.node]
    made = {one.name: one for one in tensors if one is not None and kind in (None, one.data_type)}
    graph.initializer.extend(made.values())
    refill(graph, node=[node for node in graph.node if made.keys().isdisjoint(node.output)])


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return what a Constant node holds as an initializer, None for another node and for text."""
    value = constant_value(node)
    if value is None or value.dtype == object:
        return None
    (entry,) = node.attribute
    tensor = copy.copy(entry.t if entry.type == AttributeProto.TENSOR else numpy_helper.from_array(value))
    tensor.name = node.output[0]
    return tensor
