"""The changes between two graphs with aligned nodes. Needs no torch."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.base.arrays import ArrayDistance
from mmdeploy_ext.base.errors import shape_text
from mmdeploy_ext.graphs.diff.program import Alignment, Program
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import (
    all_nodes,
    array_bytes,
    defaults_of,
    operator_name,
    opsets_of,
)
from mmdeploy_ext.spec import digest

LONGEST_VALUE = 60
"""Characters of a value in a text."""
ONLY_HERE = 'is only in this graph'
"""Last words of the detail of a node that the reference lacks."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One difference between the graph on trial (left) and the reference (right).

    Attributes:
        kind: 'attribute', 'initializer', 'wiring', 'node', 'input', 'output', 'opset', 'metadata',
            'function', 'domain' or 'inside' (of a body or function).
        where: node, tensor or key, by the left graph's name when it has one.
        left, right: position of the node in each graph, or None.
        size: largest change of an initializer of floats over the reference's largest value, or None.
    """

    kind: str
    where: str
    detail: str
    left: int | None = None
    right: int | None = None
    size: float | None = None


def changes(program: Program, reference: Program, pairs: Alignment) -> list[Change]:
    """Return the differences between two aligned graphs."""
    result: list[Change] = []
    for position in program.steps:
        mate = pairs.nodes.get(position)
        if mate is None:
            detail = f'{program.index.nodes[position].op_type} {ONLY_HERE}'
            result.append(Change('node', program.index.label(position), detail, position))
        else:
            result.extend(_node_changes(program, reference, pairs, position, mate))
    for position in sorted(set(reference.steps).difference(pairs.nodes.values())):
        detail = f'{reference.index.nodes[position].op_type} is only in the reference'
        result.append(Change('node', reference.index.label(position), detail, right=position))
    reference_texts = _interface_texts(reference.index.model)
    for kind, texts in _interface_texts(program.index.model).items():
        for name in dict.fromkeys([*texts, *reference_texts[kind]]):
            text, expected = texts.get(name), reference_texts[kind].get(name)
            if text != expected:
                sides = ['not there' if side is None else _short(side) for side in (text, expected)]
                result.append(Change(kind, name, f'{sides[0]}, reference {sides[1]}'))
    return result


def _node_changes(
    program: Program, reference: Program, pairs: Alignment, position: int, mate: int
) -> Iterator[Change]:
    label, node = program.index.label(position), program.index.nodes[position]
    expected = reference.index.nodes[mate]
    if (node.domain, node.op_type) != (expected.domain, expected.op_type):
        detail = f'is {operator_name(node)}, in the reference {operator_name(expected)}'
        yield Change('node', label, detail, position, mate)
    else:
        values = attributes(node, program.index.model)
        expected_values = attributes(expected, reference.index.model)
        for name in sorted(values.keys() | expected_values.keys()):
            value, expected_value = values.get(name), expected_values.get(name)
            if exact_text(value) != exact_text(expected_value):
                detail = f'{node.op_type} {name}: {_short(value)}, reference {_short(expected_value)}'
                yield Change('attribute', label, detail, position, mate)
    for place in range(max(len(node.input), len(expected.input))):
        names = [entry.input[place] if place < len(entry.input) else '' for entry in (node, expected)]
        if change := _input_change(program, reference, pairs, *names):
            kind, detail, size = change
            yield Change(kind, label, f'{node.op_type} input {place}: {detail}', position, mate, size)


def _input_change(
    program: Program, reference: Program, pairs: Alignment, name: str, mate: str
) -> tuple[str, str, float | None] | None:
    array, expected = program.constants.get(name), reference.constants.get(mate)
    if array is not None and expected is not None:
        if array is expected:
            return None
        detail, size = constant_change(array, expected)
        return 'initializer', f'{name}: {detail}', size
    is_computed = array is None and expected is None
    if is_computed and (pairs.tensors.get(name) == mate if name else not mate):
        return None
    sides = []
    for graph, tensor, value in ((program, name, array), (reference, mate, expected)):
        text = tensor or 'nothing'
        if value is not None:
            text = f'the constant {tensor} {_short(value)}'
        elif is_computed and name == mate:  # the names are equal, the nodes that make them are not
            text = _with_producer(graph, tensor)
        sides.append(text)
    return 'wiring', f'reads {sides[0]}, reference {sides[1]}', None


def _with_producer(program: Program, name: str) -> str:
    position = program.index.producer(name)
    if position is None:
        return f'{name} (an input)'
    node, text = program.index.nodes[position], f'{name} of {program.index.label(position)}'
    return f'{text} ({node.op_type})' if node.name else text


def constant_change(array: np.ndarray, expected: np.ndarray) -> tuple[str, float | None]:
    if array.shape != expected.shape or array.dtype != expected.dtype:
        sides = [f'{side.dtype} {shape_text(side.shape)}' for side in (array, expected)]
        return f'is {sides[0]}, reference {sides[1]}', None
    if array.dtype.kind not in 'fiu':
        return f'{int((array != expected).sum())} of {array.size} values differ', None
    distance = ArrayDistance(array, expected)
    if not distance.max_abs:
        return (
            'the same numbers in other bits (0.0 and -0.0, or another NaN)',
            0.0 if distance.scale else None,
        )
    count = int((distance.differences > 0).sum())
    detail = f'{count} of {array.size} values differ, by {distance.max_abs:.3g} at most'
    if array.size <= 4:
        detail += f' ({_short(array)}, reference {_short(expected)})'
    elif np.array_equal(np.sort(array, axis=None), np.sort(expected, axis=None)):
        detail += '; they are the same values in another order (transposed?)'
    return detail, distance.max_rel if distance.scale and array.dtype.kind == 'f' else None


def attributes(node: onnx.NodeProto, model: onnx.ModelProto | onnx.FunctionProto) -> dict[str, Any]:
    """Return a node's attributes with the operator's defaults, without sub-graphs."""
    values = defaults_of(node, opsets_of(model))
    for entry in node.attribute:
        is_graph = entry.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        if not is_graph and not entry.ref_attr_name:
            value = helper.get_attribute_value(entry)
            is_tensor = isinstance(value, onnx.TensorProto)
            values[entry.name] = numpy_helper.to_array(value) if is_tensor else value
    return values


def exact_text(value: Any) -> str:
    """Return a text that is equal only for equal attribute values."""
    if isinstance(value, np.ndarray):
        return f'{value.dtype}{value.shape}{array_bytes(value).hex()}'
    return repr(list(value)) if isinstance(value, list | tuple) else repr(value)


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f'({value.dtype} {shape_text(value.shape)})' if value.size > 8 else str(value.tolist())
    if isinstance(value, bytes):
        value = value.decode(errors='replace')
    text = str(list(value) if isinstance(value, list | tuple) else value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + '...'


def _interface_texts(model: onnx.ModelProto) -> dict[str, dict[str, str]]:
    graph = model.graph
    defaults = {tensor.name: ' with a default' for tensor in graph.initializer}

    def typed(value: onnx.ValueInfoProto) -> str:
        name = types.type_name(value.type.tensor_type.elem_type)
        return f'{name} {types.shape_label(value.type)}'

    return dict(
        input={value.name: typed(value) + defaults.get(value.name, '') for value in graph.input},
        output={value.name: typed(value) for value in graph.output},
        opset={entry.domain or 'ai.onnx': str(entry.version) for entry in model.opset_import},
        metadata={entry.key: entry.value for entry in model.metadata_props if entry.key != digest.KEY},
        function={function.name: f'{len(function.node)} nodes' for function in model.functions},
        domain={node.domain or 'ai.onnx': 'used' for node in all_nodes(model)},
    )
