"""Compute the parts of a graph that depend on no input, only on constants and fixed shapes."""

import copy
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import (
    RANDOM,
    Index,
    all_graphs,
    bodies,
    claim_name,
    constant_value,
    operator_name,
    opsets_of,
    reads,
    refill,
)
from mmdeploy_ext.graphs.passes.norms import AXES_ARE_FED
from mmdeploy_ext.graphs.run import Runner

# Write weights near zero as zero: products with denormals are 3 to 30 times slower on some CPUs.


SMALLEST = 1e-37
"""Smallest size of a weight; denormals of float32 are below 1.2e-38."""


def zero_denormals(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """Return a model with zeros for float32 weights below `SMALLEST`, and whether there were any.

    A single number stays: it may keep a logarithm or a division from zero.
    """
    if not any(_is_near_zero(numpy_helper.to_array(tensor)).any() for tensor in _weights(model)):
        return model, False
    result = copy.deepcopy(model)
    for tensor in _weights(result):
        array = numpy_helper.to_array(tensor)
        if (near_zero := _is_near_zero(array)).any():
            tensor.CopyFrom(numpy_helper.from_array(np.where(near_zero, np.float32(0), array), tensor.name))
    return result, True


def _weights(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in all_graphs(model):
        for tensor in getattr(graph, 'initializer', ()):
            if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > 1:
                yield tensor


def _is_near_zero(array: np.ndarray) -> np.ndarray:
    return (array != 0) & (np.abs(array) < SMALLEST)


# Write means of whole maps as means of rows, then of the row means: less rounding than one long sum.


FIRST_AXIS, SMALLEST_RANK = 2, 4
"""The first axis of maps (N, C, ...), and the rank from which on they have two axes and more."""


def split_global_means(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    pools = [node for node in model.graph.node if operator_name(node) == 'GlobalAveragePool']
    inferred = types.infer(model) if pools else {}
    shapes = [types.shape(inferred.get(node.input[0])) for node in pools]
    ranks = {
        node.output[0]: len(shape)
        for node, shape in zip(pools, shapes, strict=True)
        if shape is not None and len(shape) >= SMALLEST_RANK
    }
    if not ranks:
        return model, False
    result = copy.deepcopy(model)
    writer = _Writer(set(Index(model).tensors), opsets_of(model).get('', 0) >= AXES_ARE_FED)
    nodes = []
    for node in model.graph.node:
        rank = ranks.get(node.output[0]) if node.output else None
        nodes.extend(writer.write(node, rank) if rank else [node])
    refill(result.graph, node=nodes)
    result.graph.initializer.extend(writer.axes.values())
    return result, True


class _Writer:
    def __init__(self, used_names: set[str], axes_are_fed: bool) -> None:
        self.used_names, self.axes_are_fed = used_names, axes_are_fed
        self.axes: dict[int, onnx.TensorProto] = {}

    def write(self, node: onnx.NodeProto, rank: int) -> Iterator[onnx.NodeProto]:
        tensor = node.input[0]
        for axis in reversed(range(FIRST_AXIS, rank)):
            output = name = claim_name(f'{node.name or node.output[0]}/mean_of_axis_{axis}', self.used_names)
            if axis == FIRST_AXIS:
                output, name = node.output[0], node.name
            fed, attributes = [tensor], dict(axes=[axis])
            if self.axes_are_fed:
                if axis not in self.axes:
                    constant = claim_name(f'axis_{axis}', self.used_names)
                    self.axes[axis] = numpy_helper.from_array(np.array([axis]), constant)
                fed, attributes = [tensor, self.axes[axis].name], {}
            mean = helper.make_node('ReduceMean', fed, [output], name, keepdims=1, **attributes)
            mean.metadata_props.extend(node.metadata_props)
            yield mean
            tensor = output


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
