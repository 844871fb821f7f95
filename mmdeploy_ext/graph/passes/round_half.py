"""Show on a CPU what float16 does: float32 arithmetic, with every value rounded that a float16 graph stores.

ONNX Runtime's CPU has no float16 arithmetic. It computes float16 nodes in float32 and drops the casts between
two of them, so that only weights, and values at the borders to float32, are rounded (measured: 0.3 + 2048 -
2048 gives 0.3 there, 0 in float16). A GPU stores float16 between its kernels and sums in float32: that is
what the graph made here does. It is for proofs; it is slower.
"""

import copy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.graph.io.index import bodies, refill
from mmdeploy_ext.graph.io.types import infer

HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT


def round_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of the same inputs, outputs and metadata that rounds what the float16 model stores.

    Fires on nodes that write float16. A model without float16 comes back the same.

    Raises:
        ExportError: a sub-graph computes in float16.
    """
    halves = {name for name, kind in infer(model).items() if kind.tensor_type.elem_type == HALF}
    if not halves:
        return model
    result = copy.deepcopy(model)
    graph = result.graph
    constants = [_single(tensor) for tensor in graph.initializer]
    fed, given = (
        sorted(halves.intersection(value.name for value in side)) for side in (graph.input, graph.output)
    )
    nodes = [helper.make_node('Cast', [name], [f'{name}/exact'], to=SINGLE) for name in fed]
    renamed = {name: f'{name}/exact' for name in fed} | {name: f'{name}/single' for name in given}
    for node in graph.node:
        if any('float16' in onnx.printer.to_text(body) for body in bodies(node)):
            raise ExportError(
                f'node {node.name!r} ({node.op_type}) has a sub-graph in float16, whose rounding is not '
                f'shown; keep it float32'
            )
        nodes += _rounded(node, halves, renamed)
    nodes += [helper.make_node('Cast', [f'{name}/single'], [name], to=HALF) for name in given]
    refill(graph, node=nodes, initializer=constants, value_info=())
    return result


def _single(tensor: TensorProto) -> TensorProto:
    if tensor.data_type != HALF:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _rounded(node: onnx.NodeProto, halves: set[str], renamed: dict[str, str]) -> list[onnx.NodeProto]:
    """Return a node in float32, and after it the rounding of each float16 value that it writes."""
    written = copy.deepcopy(node)
    written.input[:] = [renamed.get(name, name) for name in node.input]
    written.output[:] = [renamed.get(name, name) for name in node.output]
    if halves.isdisjoint(node.output):
        return [written]
    for entry in written.attribute:
        if entry.name == 'to' and node.op_type == 'Cast':
            entry.i = SINGLE
        elif entry.type == onnx.AttributeProto.TENSOR:
            entry.t.CopyFrom(_single(entry.t))
    after = []
    for place, name in enumerate(node.output):
        if name in halves:
            final = renamed.get(name, name)
            written.output[place] = f'{name}/unrounded'
            after.append(helper.make_node('Cast', [f'{name}/unrounded'], [f'{name}/rounded'], to=HALF))
            after.append(helper.make_node('Cast', [f'{name}/rounded'], [final], to=SINGLE))
    return [written, *after]
