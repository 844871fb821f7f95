"""ONNX functions written in Python by onnxscript, which is imported on first use."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx.inliner
from onnx import helper

from mmdeploy_ext.graphs.io.index import bodies, refill

# Replace nodes by functions, which are inlined at the end.


def replace_by_functions(
    model: onnx.ModelProto, domain: str, write: Callable[[onnx.NodeProto, str], onnx.FunctionProto | None]
) -> tuple[onnx.ModelProto, bool]:
    """Replace nodes of the main graph by inlined functions; return whether any was.

    Args:
        model: the graph.
        domain: domain of the functions until they are inlined; no node of the model is of it.
        write: takes a node and the name of its function; returns the function, which takes the inputs that
            the node has, without omitted ones, gives its outputs, and is of the opset of the model; None: the
            node stays.
    """
    nodes, functions = [], []
    for node in model.graph.node:
        function = write(node, f'Replaced{len(functions)}')
        if function is None:
            nodes.append(node)
            continue
        functions.append(function)
        inputs = [name for name in node.input if name]
        nodes.append(helper.make_node(function.name, inputs, node.output, node.name, domain=domain))
        nodes[-1].metadata_props.extend(node.metadata_props)
    if not functions:
        return model, False
    result = copy.deepcopy(model)
    refill(result.graph, node=nodes)
    result.functions.extend(functions)
    result.opset_import.append(helper.make_opsetid(domain, 1))
    result = onnx.inliner.inline_selected_functions(
        result, [(domain, function.name) for function in functions]
    )
    refill(result, opset_import=[entry for entry in result.opset_import if entry.domain != domain])
    return result, True


Body = Callable[[Any], Callable[..., Any]]
"""Takes onnxscript's opset `op` and returns the function, `def body(x, y, attribute: int): ...`."""
ZERO = helper.make_tensor('zero', onnx.TensorProto.INT64, [1], [0])
"""The `value` of ConstantOfShape for int64."""
LOOP_INPUTS = onnx.TensorProto.INT64, onnx.TensorProto.BOOL
"""Types of the first inputs of the body of a Loop; ONNX Runtime needs their shape, which is ()."""
PARTS = 'parts'
"""Domain of the functions that `part` makes, until they are inlined."""


def part(op: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator for functions that bodies call several times."""
    from onnxscript import script, values

    return script(values.Opset(PARTS, 1), default_opset=op)


def function_of(body: Body, domain: str, name: str, opset: int) -> onnx.FunctionProto:
    """Return the function `domain.name` of a body for a version of ONNX's operators."""
    from onnxscript import script, values

    op = values.Opset('', opset)
    scripted = script(values.Opset(domain, 1), default_opset=op)(body(op))
    called = scripted.function_ir.get_called_functions().values()
    protos = [function.to_function_proto() for function in (scripted, *called)]
    function = _inlined(protos) if called else protos[0]
    _clean(function, {})
    function.name = name
    return function


def _clean(graph: onnx.GraphProto | onnx.FunctionProto, outer: Mapping[str, str]) -> None:
    constants: dict[bytes, str] = {}  # value -> name
    same, kept = dict(outer), []
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        node.ClearField('name')
        if node.op_type == 'Constant':
            if node.attribute[0].HasField('t'):
                node.attribute[0].t.ClearField('name')
            same[node.output[0]] = constants.setdefault(node.attribute[0].SerializeToString(), node.output[0])
            if same[node.output[0]] != node.output[0]:
                continue
        elif node.op_type == 'CastLike' and node.input[0] in constants.values():
            same[node.output[0]] = node.input[0]
            continue
        elif node.op_type == 'Loop':
            for value, kind in zip(node.attribute[0].g.input, LOOP_INPUTS, strict=False):
                value.type.CopyFrom(helper.make_tensor_type_proto(kind, ()))
        for inner in bodies(node):
            _clean(inner, same)
        kept.append(node)
    refill(graph, node=kept)


def _inlined(protos: list[onnx.FunctionProto]) -> onnx.FunctionProto:
    imports = {entry.domain: entry for proto in protos for entry in proto.opset_import}
    graph = helper.make_graph([], 'graph', [], [])
    model = helper.make_model(graph, functions=protos, opset_imports=[*imports.values()])
    parts = [(proto.domain, proto.name) for proto in protos[1:]]
    function = onnx.inliner.inline_selected_functions(model, parts).functions[0]
    refill(function, opset_import=[entry for entry in function.opset_import if entry.domain != PARTS])
    return function
