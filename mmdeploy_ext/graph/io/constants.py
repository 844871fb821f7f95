"""The values of constants, however a file holds them."""

import copy

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from mmdeploy_ext.graph.io.index import refill

ATTRIBUTE_DTYPES = {
    **dict.fromkeys((AttributeProto.FLOAT, AttributeProto.FLOATS), np.float32),
    **dict.fromkeys((AttributeProto.INT, AttributeProto.INTS), np.int64),
}
"""Type of a Constant node's attribute that is no tensor -> dtype of the values."""


def dense_values(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """Return a sparse tensor as a dense array, 0 where it has no value.

    Its indices (N,) are places in the flat array, or (N, rank) coordinates.
    """
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:
        array[tuple(indices.T)] = values
    return array


def constant_value(node: onnx.NodeProto) -> np.ndarray | None:
    """Return the value of a Constant node, whichever attribute has it; None for another node.

    None also if it has not exactly one attribute, or one that is an argument of the function around it. Texts
    are an array of objects, bytes or str.
    """
    if node.op_type != 'Constant' or node.domain not in ('', 'ai.onnx') or len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    if attribute.ref_attr_name:
        return None
    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.TENSOR:
        return numpy_helper.to_array(value)
    if attribute.type == AttributeProto.SPARSE_TENSOR:
        return dense_values(value)
    return np.asarray(value, ATTRIBUTE_DTYPES.get(attribute.type, object))


def array_bytes(array: np.ndarray) -> bytes:
    """Return bytes that equal those of another array of the same dtype and shape only if all elements do.

    Elements are equal if their bits are: 0.0 and -0.0 differ.

    Of an array of objects, which are texts, `tobytes` would give their addresses. A text counts alike as str
    and as bytes in UTF-8: ONNX's tensors and attributes give one or the other.
    """
    if array.dtype != object:
        return array.tobytes()
    return repr([text if isinstance(text, bytes) else text.encode() for text in array.ravel()]).encode()


def constants_to_initializers(graph: onnx.GraphProto, data_type: int | None = None) -> None:
    """Turn the Constant nodes of a graph into initializers, in place; constants of strings stay nodes.

    Bodies of the graph stay as they are. With `data_type`, a `TensorProto.DataType`, only the constants of
    that type become initializers; None: all do.
    """
    initializers = {}
    for node in graph.node:
        value = constant_value(node)
        if value is None or value.dtype == object:
            continue
        (attribute,) = node.attribute
        is_tensor = attribute.type == AttributeProto.TENSOR
        tensor = copy.copy(attribute.t if is_tensor else numpy_helper.from_array(value))
        tensor.name = node.output[0]
        if data_type in (None, tensor.data_type):
            initializers[tensor.name] = tensor
    graph.initializer.extend(initializers.values())
    refill(graph, node=[node for node in graph.node if initializers.keys().isdisjoint(node.output)])
