"""Give a graph exactly the inputs and outputs that its spec states."""

import copy

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.graph.io.index import refill


def _value_info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, element, list(tensor.axes), doc_string=tensor.meaning)


def _default(tensor: TensorSpec) -> onnx.TensorProto:
    shape = [axis if isinstance(axis, int) else 1 for axis in tensor.axes]
    return numpy_helper.from_array(np.full(shape, tensor.default, tensor.dtype), tensor.name)


def apply_spec(model: onnx.ModelProto, spec: GraphSpec) -> onnx.ModelProto:
    """Return a model with the spec's inputs and outputs, in its order.

    - An input that the exporter dropped because nothing uses it is put back.
    - An input with a default gets an initializer of that value, which feeding overrides.
    - Shapes are the spec's: letters for dynamic axes.
    Does not fire on tensors that the spec does not know: those are an error.

    Raises:
        ExportError: the graph takes or gives a tensor that the spec does not have.
    """
    result = copy.deepcopy(model)
    graph = result.graph
    extra = [value.name for value in graph.input if value.name not in spec.input_names]
    produced = {name for node in graph.node for name in node.output}
    produced.update(value.name for value in graph.initializer)
    absent = [name for name in spec.output_names if name not in produced]
    if extra or absent:
        raise ExportError(
            f'{spec.name}: the graph and its spec differ: inputs that the spec lacks {extra}, outputs '
            f'that the graph lacks {absent}'
        )
    defaults = {tensor.name: _default(tensor) for tensor in spec.inputs if tensor.default is not None}
    constants = [value for value in graph.initializer if value.name not in defaults]
    constants += defaults.values()
    ends = dict(input=map(_value_info, spec.inputs), output=map(_value_info, spec.outputs))
    refill(graph, **ends, initializer=constants)
    result.ir_version = max(result.ir_version, 4)
    return result
