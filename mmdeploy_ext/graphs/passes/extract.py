"""A part of a graph: between tensors (`cut`), or some nodes (`extract`)."""

import copy
from collections.abc import Iterable, Sequence

import onnx

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.graphs.edits import drop_metadata
from mmdeploy_ext.graphs.io.files import check_ordinary
from mmdeploy_ext.graphs.io.index import Index
from mmdeploy_ext.graphs.part import part
from mmdeploy_ext.graphs.run import typed_values


def cut(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Return the model from `inputs`, all of which it needs, to `outputs`."""
    index = Index(model)
    return _rebuild(index, index.ancestors(outputs, inputs), inputs, outputs)


def extract(model: onnx.ModelProto, positions: Iterable[int]) -> onnx.ModelProto:
    """Return the model of some nodes: it takes their inputs from other nodes and gives their outputs.

    - Nodes that compute constants (shapes, axes) for them are included; inputs with a default become
      constants.
    - Outputs that nothing reads, and graph outputs, are outputs too.
    - Metadata of this project is dropped if inputs or outputs changed.
    """
    check_ordinary(model)
    index = Index(model)
    nodes = set(positions)
    if not nodes:
        raise UsageError('no nodes to extract')
    constant_nodes = index.constant_nodes()
    inputs = [name for position in sorted(nodes) for name in index.reads(position)]
    nodes |= set(index.ancestors(name for name in inputs if index.producer(name) in constant_nodes))
    outputs = {name for position in nodes for name in index.writes(position)}
    inputs = dict.fromkeys(name for position in sorted(nodes) for name in index.reads(position))
    starts = [name for name in inputs if name not in outputs and name not in index.constants]
    if not starts:
        raise UsageError(
            'the nodes depend only on constants, so the extracted model would have no inputs; select others'
        )
    ends = []
    for position in sorted(nodes - constant_nodes):
        for name in index.writes(position):
            readers = index.consumers(name)
            if not readers or not nodes.issuperset(readers):
                ends.append(name)
    ends = dict.fromkeys(name for name in (*index.outputs, *ends) if name in outputs)
    starts = dict.fromkeys(name for name in (*index.inputs, *starts) if name in starts)
    return _rebuild(index, sorted(nodes), list(starts), list(ends))


def _rebuild(
    index: Index, positions: Sequence[int], starts: Sequence[str], ends: Sequence[str]
) -> onnx.ModelProto:
    is_whole = list(starts) == index.inputs and list(ends) == index.outputs
    if is_whole and len(positions) == len(index.nodes):
        return copy.deepcopy(index.model)
    inputs = {value.name: value for value in index.graph.input if value.name not in index.constants}
    outputs = {value.name: value for value in index.graph.output}
    new_ends = [name for name in (*starts, *ends) if name not in inputs and name not in outputs]
    typed = {value.name: value for value in typed_values(index, new_ends)} if new_ends else {}
    result = part(
        index,
        positions,
        [inputs.get(name) or typed.get(name) or outputs[name] for name in starts],
        [outputs.get(name) or typed[name] for name in ends],
    )
    if not is_whole or len(result.graph.input) != len(index.graph.input):
        drop_metadata(result)
    return result
