"""Write group normalisation with sums in two steps, which round less than one long sum in float32."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import claim_name, constant_value, operator_name, opsets_of, refill

AXES_ARE_FED = 18
"""The first opset in which the axes of ReduceMean are an input."""
SMALLEST_RANK = 3
"""The rank from which on images (N, C, ..., W) have rows."""


def replace_group_norm(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """Return a model with group normalisation in two sums, and whether anything changed.

    - Reshape(X (N, C, ..., W), (0, G, -1)), InstanceNormalization(_, ones, zeros) -> (R - mean) /
      Sqrt(variance + epsilon) of the reshaped X, with means over W first, then over the rest of the group.
    - Not fired: another or variable scale or bias, another shape, (N, C), sub-graphs, local functions. An
      unknown rank counts as (N, C, ..., W). In float16 squares above 255 overflow.
    """
    constants = _constants(model.graph)
    producers = {name: node for node in model.graph.node for name in node.output}
    norms = [_group_norm(node, constants, producers) for node in model.graph.node]
    if any(norms):
        inferred = types.infer(model)
        shapes = [norm and types.shape(inferred.get(norm[0].input[0])) for norm in norms]
        norms = [
            None if shape is not None and len(shape) < SMALLEST_RANK else norm
            for norm, shape in zip(norms, shapes, strict=True)
        ]
    if not any(norms):
        return model, False
    result = copy.deepcopy(model)
    writer = _Writer({*producers, *constants}, opsets_of(model).get('', 0) >= AXES_ARE_FED)
    nodes = []
    for node, norm in zip(model.graph.node, norms, strict=True):
        nodes.extend([node] if norm is None else writer.write(node, *norm))
    refill(result.graph, node=nodes)
    result.graph.initializer.extend(writer.constants.values())
    return result, True


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    nodes = [node for node in graph.node if node.op_type in ('InstanceNormalization', 'Reshape')]
    names = {name for node in nodes for name in node.input[1:]}
    unfed = names - {value.name for value in graph.input}
    arrays = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in unfed
    }
    for node in graph.node:
        if names.intersection(node.output) and (value := constant_value(node)) is not None:
            arrays[node.output[0]] = value
    return arrays


def _group_norm(
    node: onnx.NodeProto, constants: Mapping[str, np.ndarray], producers: Mapping[str, onnx.NodeProto]
) -> tuple[onnx.NodeProto, np.dtype] | None:
    if operator_name(node) != 'InstanceNormalization':
        return None
    scale, bias = (constants.get(name) for name in node.input[1:])
    before = producers.get(node.input[0])
    if scale is None or bias is None or not ((scale == 1).all() and (bias == 0).all()):
        return None
    if before is None or operator_name(before) != 'Reshape' or any(entry.i for entry in before.attribute):
        return None  # with allowzero a 0 is a size of none, not that of the input
    shape = constants.get(before.input[1])
    if shape is None or shape.size != 3 or (shape[0], shape[2]) != (0, -1):
        return None
    return before, scale.dtype


class _Writer:
    def __init__(self, used_names: set[str], axes_are_fed: bool) -> None:
        self.used_names, self.axes_are_fed = used_names, axes_are_fed
        self.constants: dict[tuple[str, bytes], onnx.TensorProto] = {}

    def write(self, node: onnx.NodeProto, before: onnx.NodeProto, dtype: np.dtype) -> list[onnx.NodeProto]:
        (image, shape), groups, output = before.input, before.output[0], node.output[0]
        epsilon = next((entry.f for entry in node.attribute if entry.name == 'epsilon'), 1e-5)
        nodes: list[onnx.NodeProto] = []

        def add(op_type: str, part: str, *inputs: str, **attributes: int) -> str:
            name = claim_name(f'{node.name or output}/{part}', self.used_names)
            nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
            nodes[-1].metadata_props.extend(node.metadata_props)
            return name

        def mean(part: str, tensor: str, axis: int, keepdims: int) -> str:
            if self.axes_are_fed:
                axes = self._constant('axes', [axis], np.int64)
                return add('ReduceMean', part, tensor, axes, keepdims=keepdims)
            return add('ReduceMean', part, tensor, axes=[axis], keepdims=keepdims)

        def mean_of_groups(part: str, tensor: str) -> str:
            rows = mean(f'{part}_of_rows', tensor, -1, 0)
            return mean(part, add('Reshape', f'{part}_rows_of_groups', rows, shape), 2, 1)

        centred = add('Sub', 'centred', groups, mean_of_groups('mean', image))
        square = add('Mul', 'square', centred, centred)
        rows = add('Reshape', 'square_by_rows', square, add('Shape', 'shape', image))
        variance = mean_of_groups('variance', rows)
        positive = add('Add', 'positive', variance, self._constant('epsilon', epsilon, dtype))
        last = helper.make_node('Div', [centred, add('Sqrt', 'deviation', positive)], [output], node.name)
        last.metadata_props.extend(node.metadata_props)
        return [*nodes, last]

    def _constant(self, name: str, value: float | Sequence[int], dtype: np.dtype | type) -> str:
        array = np.array(value, dtype)
        key = (str(array.dtype), array.tobytes())
        if key not in self.constants:
            name = claim_name(f'group_norm_{name}', self.used_names)
            self.constants[key] = numpy_helper.from_array(array, name)
        return self.constants[key].name
