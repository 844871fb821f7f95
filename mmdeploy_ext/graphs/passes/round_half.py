"""float16 and bfloat16 on a CPU: float32 arithmetic, with every value rounded that the graph stores."""

import copy
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.graphs.io.index import bodies, claim_name, refill
from mmdeploy_ext.graphs.io.types import infer, skeleton
from mmdeploy_ext.graphs.passes.fp16 import LOWER, SINGLE
from mmdeploy_ext.graphs.passes.rename import all_tensor_names, rename_tensors


def round_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that computes in float32 and rounds each value that a lower model stores.

    Inputs, defaults, outputs and metadata keep their dtypes; other constants of float16 or bfloat16 become
    float32. A model without either in its main graph is returned itself.
    """
    elements = {name: value.tensor_type.elem_type for name, value in infer(model).items()}
    halves = {name: element for name, element in elements.items() if element in LOWER.values()}
    if not halves:
        return model
    result = copy.deepcopy(model)
    graph = result.graph
    fed = {value.name for value in graph.input}  # a default keeps the type of its input, which is cast below
    initializers = [tensor if tensor.name in fed else _to_single(tensor) for tensor in graph.initializer]
    inputs, outputs = (
        sorted(halves.keys() & {value.name for value in values}) for values in (graph.input, graph.output)
    )
    used = set(all_tensor_names(model))
    new_names = {name: claim_name(name, used) for name in (*inputs, *outputs)}
    nodes = [helper.make_node('Cast', [name], [new_names[name]], to=SINGLE) for name in inputs]
    for node, typed_node in zip(graph.node, _typed_nodes(model), strict=True):
        if any('float16' in onnx.printer.to_text(body) for body in bodies(typed_node)):
            raise ExportError(
                f'node {node.name!r} ({node.op_type}) has a sub-graph in float16, which is not simulated; '
                'keep the node in float32'
            )
        nodes += _rounded(node, halves, new_names, used)
    nodes += [helper.make_node('Cast', [new_names[name]], [name], to=halves[name]) for name in outputs]
    refill(graph, node=nodes, initializer=initializers, value_info=())
    return result


def _typed_nodes(model: onnx.ModelProto) -> Sequence[onnx.NodeProto]:
    if not any(True for node in model.graph.node for _ in bodies(node)):
        return model.graph.node
    try:
        return onnx.shape_inference.infer_shapes(skeleton(model), data_prop=True).graph.node
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        return model.graph.node


def _to_single(tensor: TensorProto) -> TensorProto:
    if tensor.data_type not in LOWER.values():
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _rounded(
    node: onnx.NodeProto, halves: dict[str, int], new_names: dict[str, str], used: set[str]
) -> list[onnx.NodeProto]:
    single = copy.deepcopy(node)
    single.input[:] = [new_names.get(name, name) for name in node.input]
    single.output[:] = [new_names.get(name, name) for name in node.output]
    for body in bodies(single):
        rename_tensors(body, lambda name: new_names.get(name, name))
    if halves.keys().isdisjoint(node.output):
        return [single]
    for attribute in single.attribute:
        if attribute.name == 'to' and node.op_type == 'Cast':
            attribute.i = SINGLE
        elif attribute.type == onnx.AttributeProto.TENSOR:
            attribute.t.CopyFrom(_to_single(attribute.t))
    casts = []
    for place, name in enumerate(node.output):
        if name in halves:
            output, unrounded, rounded = single.output[place], claim_name(name, used), claim_name(name, used)
            single.output[place] = unrounded
            casts.append(helper.make_node('Cast', [unrounded], [rounded], to=halves[name]))
            casts.append(helper.make_node('Cast', [rounded], [output], to=SINGLE))
    return [single, *casts]
