"""What differs between two graphs whose nodes are aligned. Needs no torch."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.graph.diff.program import Alignment, Program
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import all_nodes, operator_name
from mmdeploy_ext.graph.io.operators import defaults_of, opsets_of
from mmdeploy_ext.proving.tensors import ArrayDistance, shape_text

SHOWN = 60
"""Characters of a value in a text."""
ONLY_HERE = 'is only in this graph'


@dataclasses.dataclass(frozen=True)
class Change:
    """One difference between two graphs.

    Attributes:
        kind: 'attribute', 'initializer', 'wiring', 'node', 'input', 'output', 'opset', 'metadata',
            'function' or 'domain'.
        where: node, tensor or key, by the left graph's name when it has one.
        detail: what differs; the left graph is the one on trial, the right one the reference.
        left: position of the node in the left graph, None when only the right one has it; so is `right`.
        size: of a changed initializer, the largest change over the largest value on the right.
    """

    kind: str
    where: str
    detail: str
    left: int | None = None
    right: int | None = None
    size: float | None = None


def changes(left: Program, right: Program, pairs: Alignment) -> list[Change]:
    """Return what differs: nodes in topological order of the left graph, then what only the right one has."""
    found: list[Change] = []
    for position in left.steps:
        other = pairs.nodes.get(position)
        kind = left.index.nodes[position].op_type
        if other is None:
            found.append(Change('node', left.index.label(position), f'{kind} {ONLY_HERE}', position))
        else:
            found.extend(_node_changes(left, right, pairs, position, other))
    for position in sorted(set(right.steps).difference(pairs.nodes.values())):
        detail = f'{right.index.nodes[position].op_type} is only in the reference'
        found.append(Change('node', right.index.label(position), detail, right=position))
    return found + _interface_changes(left.index.model, right.index.model)


def _node_changes(
    left: Program, right: Program, pairs: Alignment, ours: int, theirs: int
) -> Iterator[Change]:
    where, node, other = left.index.label(ours), left.index.nodes[ours], right.index.nodes[theirs]
    mine, his = attributes(node, left.index.model), attributes(other, right.index.model)
    if (node.domain, node.op_type) != (other.domain, other.op_type):
        detail = f'is {operator_name(node)}, in the reference {operator_name(other)}'
        yield Change('node', where, detail, ours, theirs)
        mine, his = {}, {}
    for name in sorted(mine.keys() | his.keys()):
        if exact_text(mine.get(name)) != exact_text(his.get(name)):
            detail = f'{node.op_type} {name}: {_short(mine.get(name))}, reference {_short(his.get(name))}'
            yield Change('attribute', where, detail, ours, theirs)
    for place in range(max(len(node.input), len(other.input))):
        names = [entry.input[place] if place < len(entry.input) else '' for entry in (node, other)]
        if change := _input_change(left, right, pairs, *names):
            kind, detail, size = change
            yield Change(kind, where, f'{node.op_type} input {place}: {detail}', ours, theirs, size)


def _input_change(
    left: Program, right: Program, pairs: Alignment, name: str, other: str
) -> tuple[str, str, float | None] | None:
    ours, theirs = left.constants.get(name), right.constants.get(other)
    if ours is not None and theirs is not None:
        if ours is theirs:
            return None
        detail, size = constant_change(ours, theirs)
        return 'initializer', f'{name}: {detail}', size
    sides = [
        f'the constant {tensor} {_short(value)}' if value is not None else (tensor or 'nothing')
        for tensor, value in ((name, ours), (other, theirs))
    ]
    if ours is None and theirs is None:
        if (pairs.tensors.get(name) == other) if name else not other:
            return None
        if name == other:
            sides = [_with_origin(left, name), _with_origin(right, other)]
    return 'wiring', f'reads {sides[0]}, reference {sides[1]}', None


def _with_origin(program: Program, name: str) -> str:
    """Return a tensor with the node that makes it: where the names of two are equal they tell nothing."""
    position = program.index.producer(name)
    if position is None:
        return f'{name} (an input)'
    node, text = program.index.nodes[position], f'{name} of {program.index.label(position)}'
    return f'{text} ({node.op_type})' if node.name else text


def constant_change(ours: np.ndarray, theirs: np.ndarray) -> tuple[str, float | None]:
    """Return how two constants differ, and the largest change over the largest value on the right."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        sides = [f'{array.dtype} {shape_text(array.shape)}' for array in (ours, theirs)]
        return f'is {sides[0]}, reference {sides[1]}', None
    detail = f'{int((ours != theirs).sum())} of {ours.size} values differ'
    if ours.dtype.kind not in 'fiu':
        return detail, None
    distance = ArrayDistance(ours, theirs)
    detail += f', by {distance.max_abs:.3g} at most'
    if ours.size <= 4:
        detail += f' ({_short(ours)}, reference {_short(theirs)})'
    elif np.array_equal(np.sort(ours, axis=None), np.sort(theirs, axis=None)):
        detail += '; they are the same values in another order (transposed?)'
    return detail, distance.max_rel if distance.scale else None


def attributes(node: onnx.NodeProto, model: onnx.ModelProto) -> dict[str, Any]:
    """Return name -> value of a node's attributes, defaults of the operator included."""
    found = defaults_of(node, opsets_of(model))
    for entry in node.attribute:
        if entry.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            value = helper.get_attribute_value(entry)
            found[entry.name] = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    return found


def exact_text(value: Any) -> str:
    """Return a value as a text that equals another one's only if all its numbers do."""
    if isinstance(value, np.ndarray):
        return f'{value.dtype}{value.shape}{value.tobytes().hex()}'
    return repr(list(value)) if isinstance(value, list | tuple) else repr(value)


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f'({value.dtype} {shape_text(value.shape)})' if value.size > 8 else str(value.tolist())
    if isinstance(value, bytes):
        value = value.decode(errors='replace')
    text = str(list(value) if isinstance(value, list | tuple) else value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + '...'


def _interface_changes(left: onnx.ModelProto, right: onnx.ModelProto) -> list[Change]:
    """Return differences in inputs, outputs, opsets, metadata and functions."""
    ours, theirs = _tables(left), _tables(right)
    found = []
    for kind, mine in ours.items():
        for name in dict.fromkeys([*mine, *theirs[kind]]):
            sides = [_short(side.get(name, 'not there')) for side in (mine, theirs[kind])]
            if mine.get(name) != theirs[kind].get(name):
                found.append(Change(kind, name, f'{sides[0]}, reference {sides[1]}'))
    return found


def _tables(model: onnx.ModelProto) -> dict[str, dict[str, str]]:
    """Return kind of change -> name -> text of what a model has there."""
    graph = model.graph
    defaults = {tensor.name: ' with a default' for tensor in graph.initializer}
    return dict(
        input={value.name: _typed(value) + defaults.get(value.name, '') for value in graph.input},
        output={value.name: _typed(value) for value in graph.output},
        opset={entry.domain or 'ai.onnx': str(entry.version) for entry in model.opset_import},
        metadata={entry.key: entry.value for entry in model.metadata_props},
        function={function.name: f'{len(function.node)} nodes' for function in model.functions},
        domain={node.domain or 'ai.onnx': 'used' for node in all_nodes(model)},
    )


def _typed(value: onnx.ValueInfoProto) -> str:
    name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    return f'{name} {types.shape_label(value.type)}'
