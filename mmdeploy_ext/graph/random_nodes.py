"""Which nodes of a graph draw random numbers, which no number of runs can rule out."""

import numpy as np
import onnx

from mmdeploy_ext.graph.io.constants import constant_value, tensor_values
from mmdeploy_ext.graph.io.index import RANDOM, all_graphs


def random_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the nodes whose results are random, also of bodies and functions, as 'name (operator)'.

    Dropout counts where it can be in training mode: its third input is there and is not a constant false
    (before opset 12 it has none, and never draws).
    """
    return [
        f'{node.name or f"#{position}"} ({node.op_type})'
        for graph in all_graphs(model)
        for position, node in enumerate(graph.node)
        if node.op_type in RANDOM or (node.op_type == 'Dropout' and _may_train(node, graph))
    ]


def _may_train(node: onnx.NodeProto, graph: onnx.GraphProto | onnx.FunctionProto) -> bool:
    if len(node.input) < 3 or not node.input[2]:
        return False
    known = {tensor.name: tensor_values(tensor) for tensor in getattr(graph, 'initializer', ())}
    known.update((other.output[0], constant_value(other)) for other in graph.node if other.output)
    mode = known.get(node.input[2])
    fed = {value if isinstance(value, str) else value.name for value in graph.input}
    return mode is None or node.input[2] in fed or bool(np.any(mode))
