"""Compute the parts of a graph that depend on no input, only on constants and fixed shapes."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import RANDOM, bodies, constant_value, reads, refill
from mmdeploy_ext.graphs.run import Runner

LARGEST = 1 << 22
"""Most elements of a constant that is written."""


def compute_constants(model: onnx.ModelProto) -> bool:
    """Make nodes that depend on no input constants, in place; return whether anything changed.

    OpenCV DNN 4.11 reads the small nodes of anchors wrongly. Not fired: nodes that read initializers (weights
    keep their names), other domains, random nodes, bodies, results of more than `LARGEST` elements.
    """
    light = types.skeleton(model)
    graph = light.graph
    _fix_shapes(light)
    constants: set[str] = set()
    computed: list[onnx.NodeProto] = []
    sources: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == 'Constant' and constant_value(node) is not None:
            constants.update(node.output)
            sources.append(node)
        elif _is_computed(node, constants):
            constants.update(node.output)
            computed.append(node)
            sources.append(node)
    made = {name for node in computed for name in node.output}
    kept = [node for node in graph.node if not made.intersection(node.output)]
    needed = {name for node in kept for name in reads(node)} | {value.name for value in graph.output}
    names = sorted(made & needed)
    if not names:
        return False
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    alone = helper.make_model(
        helper.make_graph(sources, 'constants', [], outputs),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    arrays = {name: array for name, array in Runner(alone).run({}).items() if array.size <= LARGEST}
    refill(model.graph, node=graph.node)
    _replace(model.graph, arrays)
    return True


def _is_computed(node: onnx.NodeProto, constants: set[str]) -> bool:
    if node.domain not in ('', 'ai.onnx') or node.op_type in RANDOM or any(bodies(node)):
        return False
    names = [name for name in node.input if name]
    return bool(names) and constants.issuperset(names)


def _fix_shapes(model: onnx.ModelProto) -> None:
    inferred = types.infer(model)
    for node in model.graph.node:
        if node.op_type != 'Shape' or node.domain not in ('', 'ai.onnx'):
            continue
        shape = types.shape(inferred.get(node.input[0]))
        if shape is None or not all(isinstance(size, int) for size in shape):
            continue
        settings = {entry.name: entry.i for entry in node.attribute}
        sizes = np.asarray(shape[slice(settings.get('start'), settings.get('end'))], np.int64)
        value = numpy_helper.from_array(sizes)
        constant = helper.make_node('Constant', [], node.output, node.name, value=value)
        constant.metadata_props.extend(node.metadata_props)
        node.CopyFrom(constant)


def _replace(graph: onnx.GraphProto, arrays: dict[str, np.ndarray]) -> None:
    outputs = {value.name for value in graph.output}
    nodes = []
    for node in graph.node:
        if len(node.output) == 1 and node.output[0] in arrays and node.output[0] in outputs:
            value = numpy_helper.from_array(arrays.pop(node.output[0]))
            nodes.append(helper.make_node('Constant', [], node.output, node.name, value=value))
        else:
            nodes.append(node)
    used, kept = set(outputs), []
    for node in reversed(nodes):
        if any(name in used and name not in arrays for name in node.output):
            used.update(reads(node))
            kept.append(node)
    refill(graph, node=reversed(kept))
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items() if name in used
    )
