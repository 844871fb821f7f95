"""Faults in inputs, outputs, defaults and opsets; and the same graph written in another way: no fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graph.io.index import all_tensors, captured
from mutation_kinds import constant_label, write
from mutation_sites import NoSite

if TYPE_CHECKING:
    from mutation_sites import Draft


def ends(draft: Draft) -> tuple[str, str]:
    """Change inputs and outputs: their order or names, or which there are."""
    return draft.pick(ENDS)(draft)


def axes(draft: Draft) -> tuple[str, str]:
    """Change the sizes that a file promises of its inputs and outputs."""
    return draft.pick(AXES)(draft)


def default(draft: Draft) -> tuple[str, str]:
    """Change defaults of optional inputs: other ones, fewer, more, or constants in their place."""
    return draft.pick(DEFAULTS)(draft)


def opset(draft: Draft) -> tuple[str, str]:
    """Change what operators mean: opset versions, domains of nodes."""
    return draft.pick(OPSETS)(draft)


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
    tensor = _optional(draft)
    array = numpy_helper.to_array(tensor)
    write(tensor, (array + array.dtype.type(draft.pick((1, 2)))).astype(array.dtype))
    return tensor.name, 'another default'


def _optional(draft: Draft) -> TensorProto:
    inputs = {value.name for value in draft.main.input}
    return draft.pick(tensor for tensor in draft.main.initializer if tensor.name in inputs)


def _near_default(draft: Draft) -> tuple[str, str]:
    """Change one value of a default by the smallest step."""
    tensor = _optional(draft)
    array = numpy_helper.to_array(tensor).copy()
    place = draft.pick(range(array.size))
    if array.dtype.kind == 'f':
        array.flat[place] = np.nextafter(array.flat[place], np.inf, dtype=array.dtype)
    else:
        array.flat[place] += 1
    write(tensor, array)
    return tensor.name, f'default: [{place}] one step larger'


def _without_default(draft: Draft) -> tuple[str, str]:
    tensor = _optional(draft)
    name = tensor.name
    draft.main.initializer.remove(tensor)
    return name, 'no default'


def _constant_default(draft: Draft) -> tuple[str, str]:
    """Take an optional input away: its default is a constant of the graph."""
    name = _optional(draft).name
    draft.main.input.remove(next(value for value in draft.main.input if value.name == name))
    return name, 'its default is a constant, and it is no input'


def _more_defaults(draft: Draft) -> tuple[str, str]:
    """Let a constant be the default of one more input."""
    inputs = {value.name for value in draft.main.input}
    tensor = draft.pick(tensor for tensor in draft.main.initializer if tensor.name not in inputs)
    draft.main.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return tensor.name, 'is an optional input, too'


def _longer_default(draft: Draft) -> tuple[str, str]:
    """Give a default one more row."""
    tensor = _optional(draft)
    array = numpy_helper.to_array(tensor)
    if array.ndim < 1:
        raise NoSite
    longer = np.concatenate([array, array[-1:]])
    tensor.CopyFrom(numpy_helper.from_array(longer, tensor.name))
    return tensor.name, 'a row more in its default'


def _opset_version(draft: Draft) -> tuple[str, str]:
    entry = draft.pick(draft.model.opset_import)
    step = draft.pick((-1, 1, 2, 3))
    entry.version += step
    return f'opset {entry.domain or "ai.onnx"}', f'{step:+d}'


def _node_domain(draft: Draft) -> tuple[str, str]:
    """Let a node be an operator of the same name in another domain."""
    graph = draft.graph()
    node = draft.pick(node for node in graph.node if node.op_type != 'Constant')
    label, domain = draft.label(graph, node), draft.pick(('com.microsoft', 'ai.onnx.ml', 'toy'))
    node.domain = domain
    if domain not in {entry.domain for entry in draft.model.opset_import}:
        draft.model.opset_import.append(helper.make_opsetid(domain, 1))
    return label, f'domain {domain}'


def _opset_twice(draft: Draft) -> tuple[str, str]:
    """Import a domain in two versions."""
    entry = draft.pick(draft.model.opset_import)
    version = entry.version + draft.pick((-2, -1, 1))
    draft.model.opset_import.append(helper.make_opsetid(entry.domain, version))
    return f'opset {entry.domain or "ai.onnx"}', f'{version} too'


def _fixed_axis(draft: Draft) -> tuple[str, str]:
    value, sizes, axis = _axis(draft)
    if sizes[axis].HasField('dim_value'):
        sizes[axis].dim_value += 1
        return value.name, f'axis {axis} one longer'
    sizes[axis].dim_value = 1
    return value.name, f'axis {axis} fixed at 1'


def _axis(draft: Draft) -> tuple[onnx.ValueInfoProto, object, int]:
    value = draft.pick([*draft.main.input, *draft.main.output])
    sizes = value.type.tensor_type.shape.dim
    return value, sizes, draft.pick(range(len(sizes)))


def _open_axis(draft: Draft) -> tuple[str, str]:
    value, sizes, axis = _axis(draft)
    if not sizes[axis].HasField('dim_value'):
        raise NoSite
    sizes[axis].dim_param = 'any'
    return value.name, f'axis {axis} of any length'


def _renamed_axis(draft: Draft) -> tuple[str, str]:
    """Let an axis have the name of another one, so that both promise the same size, or a name of its own."""
    value, sizes, axis = _axis(draft)
    if not sizes[axis].dim_param:
        raise NoSite
    values = [*draft.main.input, *draft.main.output]
    names = {size.dim_param for one in values for size in one.type.tensor_type.shape.dim}
    name = draft.pick(sorted({*names, 'other'} - {'', sizes[axis].dim_param}))
    old, sizes[axis].dim_param = sizes[axis].dim_param, name
    return value.name, f'axis {axis}: {old} -> {name}'


def _swapped_axes(draft: Draft) -> tuple[str, str]:
    value, sizes, axis = _axis(draft)
    other = draft.pick(place for place in range(len(sizes)) if sizes[place] != sizes[axis])
    first, second = onnx.TensorShapeProto.Dimension(), onnx.TensorShapeProto.Dimension()
    first.CopyFrom(sizes[axis]), second.CopyFrom(sizes[other])
    sizes[axis].CopyFrom(second), sizes[other].CopyFrom(first)
    return value.name, f'axes {axis} and {other} changed places'


def _other_rank(draft: Draft) -> tuple[str, str]:
    value, sizes, axis = _axis(draft)
    del sizes[axis]
    return value.name, f'axis {axis} is gone'


def _missing_output(draft: Draft) -> tuple[str, str]:
    if len(draft.main.output) < 2:
        raise NoSite
    value = draft.pick(draft.main.output)
    name = value.name
    draft.main.output.remove(value)
    return name, 'no output any more'


def _more_outputs(draft: Draft) -> tuple[str, str]:
    """Let an inner tensor be an output, too."""
    _, name = draft.pick(draft.float_outputs())
    if name in {value.name for value in draft.main.output}:
        raise NoSite
    draft.main.output.append(onnx.ValueInfoProto(name=name, type=draft.kinds[name]))
    return name, 'is an output, too'


def _other_output(draft: Draft) -> tuple[str, str]:
    """Let an output be an inner tensor of the same type, under the output's name."""
    value = draft.pick(draft.main.output)
    name, kind = value.name, draft.kind(draft.main, value.name, False)
    made = {output for node in draft.main.node for output in node.output if output}
    new = draft.pick(
        sorted(other for other in made if other != name and draft.kind(draft.main, other, False) == kind)
    )
    if draft.same_value(draft.main, name, new):
        raise NoSite
    source = draft.fresh('source')
    _rename_everywhere(draft, {name: source})
    next(value for value in draft.main.output if value.name == source).name = name
    draft.main.node.append(helper.make_node('Identity', [new], [name], name=draft.fresh('node')))
    return name, f'is {new}'


ENDS = (_swapped_order, _swapped_names, _renamed, _missing_output, _more_outputs, _other_output)
AXES = (_fixed_axis, _open_axis, _renamed_axis, _swapped_axes, _other_rank)
DEFAULTS = (
    *(_other_default, _near_default, _without_default, _constant_default, _more_defaults, _longer_default),
)
OPSETS = (_opset_version, _node_domain, _opset_twice)


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
