"""Replace nodes by functions of `graphs.script`, which are inlined at the end."""

import copy
from collections.abc import Callable

import onnx
import onnx.inliner
from onnx import helper

from mmdeploy_ext.graphs.io.index import refill


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
