"""Faults in bodies of If and Loop and in functions: in those of the file, or in new ones around a node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from mutation_sites import NoSite

if TYPE_CHECKING:
    from mutation_sites import Draft

PLAIN = ('', 'ai.onnx')


def _single(draft: Draft) -> tuple[onnx.NodeProto, int]:
    """Return a node of the main graph that makes one float tensor and has no bodies, and its type."""
    node, name = draft.pick(
        (node, name)
        for node, name in draft.float_outputs()
        if len(node.output) == 1
        and node.domain in PLAIN
        and not any(entry.HasField('g') for entry in node.attribute)
    )
    return node, draft.elem_type(draft.main, name)


def _changed(draft: Draft, name: str, result: str, kind: int) -> tuple[str, onnx.NodeProto]:
    """Return what is done to a tensor, and the node that does it."""
    factor = draft.pick((1.001, 1.00002, -1.0))
    return f'x {factor}', draft.node('Mul', [name, draft.constant(factor, kind)], result)


def body(draft: Draft) -> tuple[str, str]:
    """Put a node into a body that does more than the node."""
    return draft.pick((_in_if, _in_loop, _in_scan))(draft)


def _in_if(draft: Draft) -> tuple[str, str]:
    """Take the wrong one of two branches."""
    node, kind = _single(draft)
    label, output = draft.label(draft.main, node), node.output[0]
    right, wrong = onnx.NodeProto(), onnx.NodeProto()
    right.CopyFrom(node), wrong.CopyFrom(node)
    right.output[0], wrong.output[0] = draft.fresh('right'), draft.fresh('wrong')
    right.name, wrong.name = draft.fresh('node'), draft.fresh('node')
    detail, change = _changed(draft, wrong.output[0], draft.fresh('changed'), kind)
    branches = {
        'then_branch': _graph(draft, [right], right.output[0], kind),
        'else_branch': _graph(draft, [wrong, change], change.output[0], kind),
    }
    test = draft.constant(False)
    node.CopyFrom(draft.node('If', [test], output, **branches))
    return label, f'in an If that takes the other branch: {detail}'


def _graph(draft: Draft, nodes: list[onnx.NodeProto], result: str, kind: int) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(result, kind, None)
    return helper.make_graph(nodes, draft.fresh('body'), [], [value])


def _in_loop(draft: Draft) -> tuple[str, str]:
    """Let a Loop change the result of a node, twice."""
    node, kind = _single(draft)
    label, output, source = draft.label(draft.main, node), node.output[0], draft.fresh('source')
    names = [draft.fresh(stem) for stem in ('turn', 'go_on', 'value', 'stay', 'result')]
    detail, change = _changed(draft, names[2], names[4], kind)
    inner = helper.make_graph(
        [draft.node('Identity', [names[1]], names[3]), change],
        draft.fresh('body'),
        [
            helper.make_tensor_value_info(names[0], TensorProto.INT64, []),
            helper.make_tensor_value_info(names[1], TensorProto.BOOL, []),
            helper.make_tensor_value_info(names[2], kind, None),
        ],
        [
            helper.make_tensor_value_info(names[3], TensorProto.BOOL, []),
            helper.make_tensor_value_info(names[4], kind, None),
        ],
    )
    trips = draft.constant(2, TensorProto.INT64)
    place = list(draft.main.node).index(node)
    node.output[0] = source
    draft.main.node.insert(place + 1, draft.node('Loop', [trips, '', source], output, body=inner))
    return label, f'then a Loop of two turns: {detail}'


def _in_scan(draft: Draft) -> tuple[str, str]:
    """Let a Scan change the rows of the result of a node."""
    node, kind = _single(draft)
    label, output, source = draft.label(draft.main, node), node.output[0], draft.fresh('source')
    names = [draft.fresh(stem) for stem in ('row', 'result')]
    detail, change = _changed(draft, *names, kind)
    inner = helper.make_graph(
        [change],
        draft.fresh('body'),
        [helper.make_tensor_value_info(names[0], kind, None)],
        [helper.make_tensor_value_info(names[1], kind, None)],
    )
    place = list(draft.main.node).index(node)
    node.output[0] = source
    draft.main.node.insert(place + 1, draft.node('Scan', [source], output, body=inner, num_scan_inputs=1))
    return label, f'then a Scan of its rows: {detail}'


def function(draft: Draft) -> tuple[str, str]:
    """Put a node into a local function that does more than the node, under a new name or its own."""
    return draft.pick((_new_function, _shadowing_function, _changed_function))(draft)


def _function_of(draft: Draft, node: onnx.NodeProto, kind: int, domain: str, name: str) -> tuple[str, object]:
    """Return what a function does besides a node, and the function; it takes what the node takes."""
    taken = [f'in_{place}' for place in range(len(node.input))]
    right = onnx.NodeProto()
    right.CopyFrom(node)
    right.input[:] = [new if old else '' for new, old in zip(taken, node.input, strict=True)]
    right.output[0] = 'made'
    factor = float(draft.pick((1.001, 1.00002, -1.0)))
    value = helper.make_tensor('factor', kind, [], [factor])
    nodes = [
        right,
        helper.make_node('Constant', [], ['factor'], value=value),
        helper.make_node('Mul', ['made', 'factor'], ['changed']),
    ]
    return f'x {factor}', helper.make_function(
        domain, name, taken, ['changed'], nodes, list(draft.model.opset_import)
    )


def _new_function(draft: Draft) -> tuple[str, str]:
    node, kind = _single(draft)
    label, name = draft.label(draft.main, node), f'Toy{node.op_type}'
    detail, made = _function_of(draft, node, kind, 'toy', name)
    draft.model.functions.append(made)
    if 'toy' not in {entry.domain for entry in draft.model.opset_import}:
        draft.model.opset_import.append(helper.make_opsetid('toy', 1))
    node.op_type, node.domain = name, 'toy'
    node.ClearField('attribute')
    return label, f'in a function: {detail}'


def _shadowing_function(draft: Draft) -> tuple[str, str]:
    """Give an operator of the standard a function of the same name, which an engine may call instead."""
    node, kind = _single(draft)
    label, op_type = draft.label(draft.main, node), node.op_type
    domain = draft.pick(PLAIN)
    others = [other for other in draft.main.node if other.op_type == op_type]
    if len({len(other.input) for other in others}) > 1:
        raise NoSite
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    detail, made = _function_of(draft, inner, kind, domain, op_type)
    draft.model.functions.append(made)
    return label, f'a function {domain or "of the standard domain"} of its name: {detail}'


def _changed_function(draft: Draft) -> tuple[str, str]:
    """Let a function of the file read another constant, or write other outputs first."""
    made = draft.pick(draft.model.functions)
    if len(made.output) > 1:
        made.output[:] = [*made.output[1:], made.output[0]]
        return made.name, 'outputs in another order'
    node = draft.pick(node for node in made.node if len(node.input) > 1)
    node.input[:] = [node.input[1], node.input[0], *node.input[2:]]
    return f'{made.name}: {node.op_type}', 'first inputs changed places'
