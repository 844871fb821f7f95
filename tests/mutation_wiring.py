"""Faults between nodes: another tensor is read, a node too many, a node gone, wrong for some inputs only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import captured
from mutation_sites import FLOATS, RESULT, SOURCE, NoSite

if TYPE_CHECKING:
    import onnx

    from mutation_sites import Draft

UNARY = (
    *(
        'Relu',
        'Sigmoid',
        'Clip',
        'Exp',
        'Sqrt',
        'Floor',
        'Ceil',
        'Neg',
        'Abs',
        'Not',
        'Tanh',
        'Softmax',
        'Erf',
    ),
    *(
        'InstanceNormalization',
        'LayerNormalization',
        'BatchNormalization',
        'LeakyRelu',
        'Log',
        'Round',
        'Sin',
    ),
    *('Transpose', 'Cos', 'HardSigmoid', 'Softplus'),
)
BINARY = ('Add', 'Sub', 'Mul', 'Div', 'Max', 'Min', 'Where', 'And', 'Or')


def wiring(draft: Draft) -> tuple[str, str]:
    """Let an input of a node read another tensor of the same type and sizes (or rank) from further above."""
    graph = draft.graph()
    consumers = [index for index, node in enumerate(graph.node) if any(node.input)]
    index = draft.pick(consumers)
    node = graph.node[index]
    place = draft.pick(place for place, name in enumerate(node.input) if name)
    above = [name for other in graph.node[:index] for name in other.output if name]
    above += [value if isinstance(value, str) else value.name for value in graph.input]
    above += [tensor.name for tensor in getattr(graph, 'initializer', ())]
    old = node.input[place]
    for by_shape in (True, False):
        wanted = draft.kind(graph, old, by_shape)
        same = [
            name for name in above if name != old and wanted and draft.kind(graph, name, by_shape) == wanted
        ]
        if same:
            new = draft.pick(same)
            if draft.same_value(graph, old, new):
                raise NoSite
            node.input[place] = new
            return draft.label(graph, node), f'input {place}: {old} -> {new}'
    raise NoSite


def insertion(draft: Draft) -> tuple[str, str]:
    """Put a node behind a float tensor that changes it little, seldom, or out of the usual range."""
    node, name = draft.pick(draft.float_outputs())
    kind = draft.elem_type(draft.main, name)
    detail = draft.pick(INSERTIONS)
    draft.after(name, INSERTIONS[detail](draft, kind))
    return f'{name} of {draft.label(draft.main, node)}', detail


def _simple(op_type: str, value: float | None = None):
    def build(draft: Draft, kind: int) -> list[onnx.NodeProto]:
        constants = [] if value is None else [draft.constant(value, kind)]
        return [draft.node(op_type, [SOURCE, *constants], RESULT)]

    return build


def _rounded(draft: Draft, kind: int) -> list[onnx.NodeProto]:
    other = TensorProto.BFLOAT16 if kind == TensorProto.FLOAT16 else TensorProto.FLOAT16
    half = draft.node('Cast', [SOURCE], to=other)
    return [half, draft.node('Cast', list(half.output), RESULT, to=kind)]


def _without_nan(draft: Draft, kind: int) -> list[onnx.NodeProto]:
    test = draft.node('IsNaN', [SOURCE])
    return [test, draft.node('Where', [*test.output, draft.constant(0, kind), SOURCE], RESULT)]


def _dropout(draft: Draft, kind: int) -> list[onnx.NodeProto]:
    """Zero the tensor in 2 % of the runs."""
    drawn = draft.node('RandomUniform', [], shape=[1], dtype=TensorProto.FLOAT)
    test = draft.node('Less', [*drawn.output, draft.constant(np.float32(0.02))])
    return [drawn, test, draft.node('Where', [*test.output, draft.constant(0, kind), SOURCE], RESULT)]


INSERTIONS = {
    'Clip at 10000': lambda draft, kind: [
        draft.node('Clip', [SOURCE, draft.constant(-1e4, kind), draft.constant(1e4, kind)], RESULT)
    ],
    'Min with 600': _simple('Min', 600.0),
    'Add 1e-6': _simple('Add', 1e-6),
    'Mul 1.00002': _simple('Mul', 1.00002),
    'Mul 1.01': _simple('Mul', 1.01),
    'Relu': _simple('Relu'),
    'Identity': _simple('Identity'),
    'Cast to half and back': _rounded,
    'NaN to 0': _without_nan,
    'zero in 2 % of runs': _dropout,
}


def deletion(draft: Draft) -> tuple[str, str]:
    """Let the readers of a node read one of its inputs of the same type: an activation, one side of a sum."""
    graph = draft.graph()
    node = draft.pick(node for node in graph.node if node.op_type in (*UNARY, *BINARY))
    places = [0] if node.op_type in UNARY else range(len(node.input))
    made = node.output[0]
    fitting = [
        node.input[place]
        for place in places
        if node.input[place] and draft.kind(graph, node.input[place], False) == draft.kind(graph, made, False)
    ]
    where = draft.label(graph, node)
    kept = draft.pick(fitting if graph is draft.main else [node.input[place] for place in places])
    kept_node = helper.make_node('Identity', [kept], [made], name=node.name)
    if any(made in captured(other) for other in graph.node) or made in {
        value if isinstance(value, str) else value.name for value in graph.output
    }:
        node.CopyFrom(kept_node)  # who reads it cannot be told to read another tensor
        return where, f'passes {kept} on'
    for other in graph.node:
        for place, name in enumerate(other.input):
            if name == made:
                other.input[place] = kept
    graph.node.remove(node)
    return where, f'gone; its readers read {kept}'


def condition(draft: Draft) -> tuple[str, str]:
    """Make a float tensor wrong for some inputs only: sizes, ratios, batches, dark pictures, values."""
    source = draft.pick(
        value for value in draft.main.input if draft.elem_type(draft.main, value.name) in FLOATS
    )
    sizes = types.shape(source.type) or []
    test = draft.pick(test for test, (fits, _) in CONDITIONS.items() if fits(sizes))
    node, name = draft.pick(draft.float_outputs())
    kind = draft.elem_type(draft.main, name)
    nodes = CONDITIONS[test][1](draft, source.name)
    wrong = draft.pick(WRONG)
    if draft.random.random() < 0.5:
        changed = WRONG[wrong](draft, kind, SOURCE)
        choice = draft.node('Where', [nodes[-1].output[0], changed.output[0], SOURCE], RESULT)
        nodes = [*nodes, changed, choice]
        form = 'Where'
    else:
        changed, same = WRONG[wrong](draft, kind, SOURCE), draft.node('Identity', [SOURCE])
        branches = {
            f'{branch}_branch': helper.make_graph(
                [body], draft.fresh(branch), [], [helper.make_tensor_value_info(body.output[0], kind, None)]
            )
            for branch, body in (('then', changed), ('else', same))
        }
        nodes = [*nodes, draft.node('If', [nodes[-1].output[0]], RESULT, **branches)]
        form = 'If'
    draft.after(name, nodes)
    return f'{name} of {draft.label(draft.main, node)}', f'{wrong} by {form} when {source.name} has {test}'


def _axis_test(axis: int, op_type: str, limit: int, divisor: int = 0):
    def build(draft: Draft, source: str) -> list[onnx.NodeProto]:
        shape = draft.node('Shape', [source])
        size = draft.node('Gather', [*shape.output, draft.constant(np.int64(axis))])
        nodes = [shape, size]
        if divisor:
            nodes.append(draft.node('Mod', [*size.output, draft.constant(np.int64(divisor))]))
        return [*nodes, draft.node(op_type, [nodes[-1].output[0], draft.constant(np.int64(limit))])]

    return build


def _side_test(long: int, short: int, factor: int):
    def build(draft: Draft, source: str) -> list[onnx.NodeProto]:
        shape = draft.node('Shape', [source])
        one, two = (
            draft.node('Gather', [*shape.output, draft.constant(np.int64(axis))]) for axis in (long, short)
        )
        scaled = draft.node('Mul', [*two.output, draft.constant(np.int64(factor))])
        return [shape, one, two, scaled, draft.node('Greater', [*one.output, *scaled.output])]

    return build


def _mean_test(op_type: str, limit: float):
    def build(draft: Draft, source: str) -> list[onnx.NodeProto]:
        kind = draft.elem_type(draft.main, source)
        mean = draft.node('ReduceMean', [source], keepdims=0)
        return [mean, draft.node(op_type, [*mean.output, draft.constant(limit, kind)])]

    return build


def _open(*axes: int):
    """Return what tells whether these axes of an image are dynamic."""
    return lambda sizes: len(sizes) == 4 and all(isinstance(sizes[axis], str) for axis in axes)


CONDITIONS = {
    'H > 640': (_open(2), _axis_test(2, 'Greater', 640)),
    'W > 640': (_open(3), _axis_test(3, 'Greater', 640)),
    'H > W': (_open(2, 3), _side_test(2, 3, 1)),
    'W > 2 H': (_open(2, 3), _side_test(3, 2, 2)),
    'H % 64 > 0': (_open(2), _axis_test(2, 'Greater', 0, 64)),
    'W % 64 > 0': (_open(3), _axis_test(3, 'Greater', 0, 64)),
    'a batch of 3 or more': (lambda sizes: sizes[:1] == ['B'], _axis_test(0, 'Greater', 2)),
    'more than 1000 rows': (
        lambda sizes: sizes[:1] not in ([], ['B']) and isinstance(sizes[0], str),
        _axis_test(0, 'Greater', 1000),
    ),
    'a mean below -1.5': (lambda sizes: sizes[:1] != ['B'] or len(sizes) > 2, _mean_test('Less', -1.5)),
    'a mean above 1.5': (lambda sizes: sizes[:1] != ['B'] or len(sizes) > 2, _mean_test('Greater', 1.5)),
}
"""Name of a condition -> whether an input of these sizes can have it, what builds its nodes; the last gives
the bool."""
WRONG = {
    'x 1.01': lambda draft, kind, name: draft.node('Mul', [name, draft.constant(1.01, kind)]),
    'zeros': lambda draft, kind, name: draft.node('Mul', [name, draft.constant(0, kind)]),
    '+ 1': lambda draft, kind, name: draft.node('Add', [name, draft.constant(1, kind)]),
    'NaN': lambda draft, kind, name: draft.node('Mul', [name, draft.constant(np.nan, kind)]),
}
