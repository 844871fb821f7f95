"""Faults in inputs, outputs and opsets; and the same graph written in another way, which is no fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graph.io.index import all_tensors, captured
from mutation_kinds import constant_label, write
from mutation_sites import NoSite

if TYPE_CHECKING:
    from mutation_sites import Draft


def ends(draft: Draft) -> tuple[str, str]:
    """Change the outside: order or names of inputs and outputs, defaults, opset."""
    return draft.pick(ENDS)(draft)


def _swapped_order(draft: Draft) -> tuple[str, str]:
    side, values = draft.pick((('inputs', draft.main.input), ('outputs', draft.main.output)))
    first, second = _two(draft, values)
    one, two = onnx.ValueInfoProto(), onnx.ValueInfoProto()
    one.CopyFrom(values[first]), two.CopyFrom(values[second])
    values[first].CopyFrom(two), values[second].CopyFrom(one)
    return f'{one.name}, {two.name}', f'{side} in another order'


def _two(draft: Draft, values: object) -> tuple[int, int]:
    if len(values) < 2:
        raise NoSite
    first, second = sorted(draft.random.permutation(len(values))[:2].tolist())
    return first, second


def _swapped_names(draft: Draft) -> tuple[str, str]:
    """Let two outputs, or two inputs, have each other's names, without changing their order."""
    side, values = draft.pick((('inputs', draft.main.input), ('outputs', draft.main.output)))
    first, second = _two(draft, values)
    one, two = values[first].name, values[second].name
    _rename_everywhere(draft, {one: two, two: one})
    return f'{one}, {two}', f'{side} with names swapped'


def _renamed(draft: Draft) -> tuple[str, str]:
    value = draft.pick([*draft.main.input, *draft.main.output])
    old = value.name
    _rename_everywhere(draft, {old: f'{old}_'})
    return old, 'another name'


def _rename_everywhere(draft: Draft, names: dict[str, str]) -> None:
    """Rename tensors of the main graph, in bodies too."""
    waiting = [draft.main]
    while waiting:
        graph = waiting.pop()
        for node in graph.node:
            for fields in (node.input, node.output):
                fields[:] = [names.get(name, name) for name in fields]
            waiting += [entry.g for entry in node.attribute if entry.HasField('g')]
        for field in ('input', 'output', 'initializer', 'value_info'):
            for value in getattr(graph, field):
                value.name = names.get(value.name, value.name)


def _other_default(draft: Draft) -> tuple[str, str]:
    inputs = {value.name for value in draft.main.input}
    tensor = draft.pick(tensor for tensor in draft.main.initializer if tensor.name in inputs)
    array = numpy_helper.to_array(tensor)
    write(tensor, (array + array.dtype.type(draft.pick((1, 2)))).astype(array.dtype))
    return tensor.name, 'another default'


def _without_default(draft: Draft) -> tuple[str, str]:
    inputs = {value.name for value in draft.main.input}
    tensor = draft.pick(tensor for tensor in draft.main.initializer if tensor.name in inputs)
    name = tensor.name
    draft.main.initializer.remove(tensor)
    return name, 'no default'


def _opset(draft: Draft) -> tuple[str, str]:
    entry = draft.pick(draft.model.opset_import)
    step = draft.pick((-1, 1, 2, 3))
    entry.version += step
    return f'opset {entry.domain or "ai.onnx"}', f'{step:+d}'


def _fixed_axis(draft: Draft) -> tuple[str, str]:
    value = draft.pick([*draft.main.input, *draft.main.output])
    sizes = value.type.tensor_type.shape.dim
    axis = draft.pick(range(len(sizes)))
    if sizes[axis].HasField('dim_value'):
        sizes[axis].dim_value += 1
        return value.name, f'axis {axis} one longer'
    sizes[axis].dim_value = 1
    return value.name, f'axis {axis} fixed at 1'


def _missing_output(draft: Draft) -> tuple[str, str]:
    if len(draft.main.output) < 2:
        raise NoSite
    value = draft.pick(draft.main.output)
    name = value.name
    draft.main.output.remove(value)
    return name, 'no output any more'


ENDS = (
    *(_swapped_order, _swapped_names, _renamed, _other_default, _without_default, _opset, _fixed_axis),
    _missing_output,
)


def harmless(draft: Draft) -> tuple[str, str]:
    """Write the same graph in another way."""
    return draft.pick(SAME)(draft)


def _inner_name(draft: Draft) -> tuple[str, str]:
    outside = {value.name for value in (*draft.main.input, *draft.main.output)}
    bodies_read = {name for node in draft.main.node for name in captured(node)}
    name = draft.pick(
        name for node in draft.main.node for name in node.output if name and name not in outside | bodies_read
    )
    _rename_everywhere(draft, {name: draft.fresh('inner')})
    return name, 'another inner name'


def _node_name(draft: Draft) -> tuple[str, str]:
    node = draft.pick(draft.main.node)
    where = draft.label(draft.main, node)
    node.name = draft.fresh('node')
    return where, 'another name of the node'


def _node_order(draft: Draft) -> tuple[str, str]:
    nodes = draft.main.node
    place = draft.pick(
        index
        for index in range(1, len(nodes))
        if not set(nodes[index - 1].output) & {*nodes[index].input, *captured(nodes[index])}
    )
    where = draft.label(draft.main, nodes[place])
    moved = onnx.NodeProto()
    moved.CopyFrom(nodes[place])
    del nodes[place]
    nodes.insert(place - 1, moved)
    return where, 'one place earlier'


def _default_said(draft: Draft) -> tuple[str, str]:
    """Say what an attribute is by default."""
    version = next(entry.version for entry in draft.model.opset_import if entry.domain in ('', 'ai.onnx'))
    found = []
    for node in draft.main.node:
        if node.domain in ('', 'ai.onnx') and onnx.defs.has(node.op_type, version, ''):
            schema = onnx.defs.get_schema(node.op_type, version, '')
            said = {entry.name for entry in node.attribute}
            found += [
                (node, entry.default_value)
                for name, entry in schema.attributes.items()
                if name not in said and entry.default_value.type
            ]
    node, entry = draft.pick(found)
    node.attribute.append(entry)
    return draft.label(draft.main, node), f'{entry.name} said to be its default'


def _constant_node(draft: Draft) -> tuple[str, str]:
    """Keep an initializer in a Constant node."""
    inputs = {value.name for value in draft.main.input}
    tensor = draft.pick(tensor for tensor in draft.main.initializer if tensor.name not in inputs)
    name = tensor.name
    node = helper.make_node('Constant', [], [name], name=draft.fresh('node'), value=tensor)
    draft.main.initializer.remove(tensor)
    draft.main.node.insert(0, node)
    return name, 'in a Constant node'


def _typed_storage(draft: Draft) -> tuple[str, str]:
    """Keep the values of a tensor in the typed field instead of raw bytes."""
    tensor = draft.pick(
        tensor
        for tensor in all_tensors(draft.model)
        if tensor.data_type == TensorProto.FLOAT and tensor.raw_data
    )
    where, array = constant_label(draft, tensor), numpy_helper.to_array(tensor)
    tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, array.ravel()))
    return where, 'in the typed field'


def _words(draft: Draft) -> tuple[str, str]:
    node = draft.pick(draft.main.node)
    node.doc_string = draft.fresh('words')
    return draft.label(draft.main, node), 'a doc string'


SAME = (_inner_name, _node_name, _node_order, _default_said, _constant_node, _typed_storage, _words)
