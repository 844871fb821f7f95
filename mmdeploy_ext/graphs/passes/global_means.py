"""Write means of whole maps as means of rows, then of the row means: less rounding than one long sum."""

import copy
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import Index, claim_name, operator_name, opsets_of, refill
from mmdeploy_ext.graphs.passes.norms import AXES_ARE_FED

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
