"""Which node of one graph is which of another, and what differs between them. Needs no torch.

Names say little: exporters number tensors, and tools rename them. Nodes are the same that compute the same
from the inputs on (everything before a difference), or that the same is computed from (everything behind it).
What is left, the differences themselves, is found from its neighbours.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.graph.index import all_nodes, bodies

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from mmdeploy_ext.graph.diff_nodes import Program

SHOWN = 60
"""Characters of a value in a text."""
ONLY_HERE = 'is only in this graph'


@dataclasses.dataclass
class Alignment:
    """Which is which.

    Attributes:
        nodes: position in the left graph -> position in the right one.
        tensors: tensor of the left graph -> tensor of the right one; constants are not among them.
    """

    nodes: dict[int, int]
    tensors: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Change:
    """One difference between two graphs.

    Attributes:
        kind: 'attribute', 'initializer', 'wiring', 'node', 'input', 'output', 'opset', 'metadata',
            'function' or 'domain'.
        left: position of the node in the left graph, None when only the right one has it.
        right: the other way round.
        where: node, tensor or key, by the left graph's name when it has one.
        detail: what differs; the left graph is the one on trial, the right one the reference.
        size: of a changed initializer, the largest change over the largest value on the right.
    """

    kind: str
    where: str
    detail: str
    left: int | None = None
    right: int | None = None
    size: float | None = None


def align(left: Program, right: Program) -> Alignment:
    """Align two graphs; their constants must come from one `Constants`."""
    pairs = Alignment({}, dict(_interface(left.index.inputs, right.index.inputs)))
    pairs.tensors.update(_interface(list(left.defaults), list(right.defaults)))
    outputs = dict(_interface(left.index.outputs, right.index.outputs))
    pairs.tensors.update(outputs)  # whatever writes them: what the file promises is compared with its like
    forward, backward = _forward(left, right, pairs.tensors), _backward(left, right, outputs)
    _pair_equal(pairs, left, right, *map(_both, forward, backward))  # a copy elsewhere is not taken for it
    _pair_equal(pairs, left, right, *forward)
    _pair_equal(pairs, left, right, *backward)
    for name, other in outputs.items():
        _pair_tensors(pairs, left, right, name, other)
    _spread(pairs, left, right)
    _by_name(pairs, left, right)
    _spread(pairs, left, right)
    _replaced(pairs, left, right)
    return pairs


def _interface(left: Sequence[str], right: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pair inputs or outputs: by name, the rest by place when there are as many."""
    shared = set(left) & set(right)
    yield from ((name, name) for name in left if name in shared)
    rest = [[name for name in names if name not in shared] for names in (left, right)]
    if len(rest[0]) == len(rest[1]):
        yield from zip(*rest, strict=True)


def _both(forward: dict[int, Hashable], backward: dict[int, Hashable]) -> dict[int, Hashable]:
    return {position: (key, backward[position]) for position, key in forward.items()}


def _pair_equal(
    pairs: Alignment, left: Program, right: Program, ours: dict[int, Hashable], theirs: dict[int, Hashable]
) -> None:
    """Pair nodes with the same key, in order."""
    taken, waiting = set(pairs.nodes.values()), collections.defaultdict(collections.deque)
    for position, key in theirs.items():
        if position not in taken:
            waiting[key].append(position)
    for position, key in ours.items():
        if position not in pairs.nodes and waiting[key]:
            _pair_nodes(pairs, left, right, position, waiting[key].popleft())


def _pair_nodes(pairs: Alignment, left: Program, right: Program, ours: int, theirs: int) -> None:
    pairs.nodes[ours] = theirs
    for name, other in zip(left.index.nodes[ours].output, right.index.nodes[theirs].output, strict=False):
        if name and other:
            pairs.tensors.setdefault(name, other)


def _pair_tensors(pairs: Alignment, left: Program, right: Program, name: str, other: str) -> None:
    ours, theirs = _producers(left, right, name, other)
    if _pairable(pairs, left, right, ours, theirs):
        _pair_nodes(pairs, left, right, ours, theirs)


def _pairable(pairs: Alignment, left: Program, right: Program, ours: int | None, theirs: int | None) -> bool:
    if ours is None or theirs is None or ours in pairs.nodes or theirs in pairs.nodes.values():
        return False
    return left.index.nodes[ours].op_type == right.index.nodes[theirs].op_type


def _keys(
    program: Program, of_tensor: Callable[[str], Hashable], node_key: dict[int, Hashable]
) -> dict[int, Hashable]:
    for position in program.steps:
        inputs = tuple(of_tensor(name) for name in program.index.reads(position))
        node_key[position] = hash((*_plain(program, position), inputs))
    return node_key


def _forward(left: Program, right: Program, inputs: dict[str, str]) -> tuple[dict[int, Hashable], ...]:
    """Return per graph position -> key of what the node computes from the inputs."""
    other = {name: name for name in inputs.values()}
    result = []
    for program, shared in ((left, inputs), (right, other)):
        key: dict[int, Hashable] = {}
        result.append(_keys(program, functools.partial(_tensor_key, program, shared, key), key))
    return tuple(result)


def _tensor_key(program: Program, shared: dict[str, str], key: dict[int, Hashable], name: str) -> Hashable:
    position = program.index.producer(name)
    if name in program.constants:
        return ('constant', id(program.constants[name]))
    if position is None:
        return ('input', shared.get(name, (id(program), name)))
    return (key[position], list(program.index.nodes[position].output).index(name))


def _backward(left: Program, right: Program, outputs: dict[str, str]) -> tuple[dict[int, Hashable], ...]:
    """Return per graph position -> key of what is computed from the node, its own constants included."""
    other = {name: name for name in outputs.values()}
    result = []
    for program, shared in ((left, outputs), (right, other)):
        key: dict[int, Hashable] = {}
        for position in reversed(program.steps):
            uses = []
            for place, name in enumerate(program.index.nodes[position].output):
                readers = [
                    (key[reader], spot)
                    for reader in program.index.consumers(name)
                    for spot, read in enumerate(program.index.reads(reader))
                    if read == name and reader in key
                ]
                uses.append((place, shared.get(name), tuple(sorted(readers))))
            own = tuple(
                (place, id(program.constants[name]))
                for place, name in enumerate(program.index.reads(position))
                if name in program.constants
            )
            key[position] = hash((*_plain(program, position), own, tuple(uses)))
        result.append(key)
    return tuple(result)


def _plain(program: Program, position: int) -> tuple[Hashable, ...]:
    node = program.index.nodes[position]
    inner = tuple(tuple(entry.op_type for entry in body.node) for body in bodies(node))
    values = attributes(node, program.index.model)
    return (
        node.domain,
        node.op_type,
        tuple(sorted((name, _text(value)) for name, value in values.items())),
        inner,
    )


def _spread(pairs: Alignment, left: Program, right: Program) -> None:
    """Pair the neighbours of what is paired: what writes the same input, what alone reads the same output."""
    waiting = collections.deque(pairs.nodes.items())
    while waiting:
        ours, theirs = waiting.popleft()
        for first, second in _neighbours(left, right, ours, theirs):
            if _pairable(pairs, left, right, first, second):
                _pair_nodes(pairs, left, right, first, second)
                waiting.append((first, second))


def _neighbours(
    left: Program, right: Program, ours: int, theirs: int
) -> Iterator[tuple[int | None, int | None]]:
    mine, other = left.index, right.index
    for name, second in zip(mine.nodes[ours].input, other.nodes[theirs].input, strict=False):
        yield _producers(left, right, name, second)
    for name, second in zip(mine.nodes[ours].output, other.nodes[theirs].output, strict=False):
        if not name or not second:
            continue
        by_kind = [_readers(left, name), _readers(right, second)]
        if len(by_kind[0]['Cast']) != len(by_kind[1]['Cast']):
            by_kind = [_readers(left, name, through_casts=True), _readers(right, second, through_casts=True)]
        for kind, readers in by_kind[0].items():
            if len(readers) == len(by_kind[1][kind]):
                yield from zip(readers, by_kind[1][kind], strict=True)


def _producers(left: Program, right: Program, name: str, other: str) -> tuple[int | None, int | None]:
    """Return what makes two tensors; a Cast that only one graph has (half precision) is looked through."""
    found = [program.index.producer(tensor) for program, tensor in ((left, name), (right, other))]
    casts = [_is_cast(program, at) for program, at in zip((left, right), found, strict=True)]
    if casts[0] != casts[1]:
        side = casts.index(True)
        program = (left, right)[side]
        found[side] = program.index.producer(program.index.nodes[found[side]].input[0])
    return found[0], found[1]


def _readers(program: Program, name: str, through_casts: bool = False) -> dict[str, list[int]]:
    """Return operator -> nodes that read a tensor."""
    found: dict[str, list[int]] = collections.defaultdict(list)
    for reader in program.index.consumers(name):
        if through_casts and _is_cast(program, reader):
            for kind, readers in _readers(program, program.index.nodes[reader].output[0]).items():
                found[kind].extend(readers)
        else:
            found[program.index.nodes[reader].op_type].append(reader)
    return found


def _is_cast(program: Program, position: int | None) -> bool:
    return position is not None and program.index.nodes[position].op_type == 'Cast'


def _by_name(pairs: Alignment, left: Program, right: Program) -> None:
    """Pair what is left by the names of nodes."""
    named = {right.index.nodes[position].name: position for position in right.steps}
    for position in left.steps:
        name = left.index.nodes[position].name
        if name and name in named and _pairable(pairs, left, right, position, named[name]):
            _pair_nodes(pairs, left, right, position, named[name])


def _replaced(pairs: Alignment, left: Program, right: Program) -> None:
    """Pair what stands in the same place and is another operator: it reads the same, and is read alike."""
    taken, waiting = set(pairs.nodes.values()), collections.defaultdict(list)
    for position in right.steps:
        if position not in taken:
            waiting[_computed_inputs(right, position)].append(position)
    for position in left.steps:
        if position in pairs.nodes:
            continue
        key = tuple(pairs.tensors.get(name) for name in _computed_inputs(left, position))
        for other in waiting[key] if key else ():
            if _read_alike(pairs, left, right, position, other):
                _pair_nodes(pairs, left, right, position, other)
                waiting[key].remove(other)
                break


def _computed_inputs(program: Program, position: int) -> tuple[str, ...]:
    return tuple(name for name in program.index.reads(position) if name not in program.constants)


def _read_alike(pairs: Alignment, left: Program, right: Program, ours: int, theirs: int) -> bool:
    """Return whether the first outputs of two nodes are one graph output, or read at one place of a pair."""
    mine, other = (
        next(iter(program.index.writes(at)), '') for program, at in ((left, ours), (right, theirs))
    )
    if not mine or not other:
        return False
    if pairs.tensors.get(mine) == other:
        return True
    for reader in left.index.consumers(mine):
        mate = pairs.nodes.get(reader)
        if mate is not None and (mine, other) in zip(
            left.index.nodes[reader].input, right.index.nodes[mate].input, strict=False
        ):
            return True
    return False


# ---- differences


def changes(left: Program, right: Program, pairs: Alignment) -> list[Change]:
    """Return what differs: nodes in topological order of the left graph, then what only the right one has."""
    found: list[Change] = []
    for position in left.steps:
        other = pairs.nodes.get(position)
        kind = left.index.nodes[position].op_type
        if other is None:
            found.append(Change('node', left.label(position), f'{kind} {ONLY_HERE}', position))
        else:
            found.extend(_node_changes(left, right, pairs, position, other))
    mates = set(pairs.nodes.values())
    for position in right.steps:
        if position not in mates:
            kind = right.index.nodes[position].op_type
            where = right.label(position)
            found.append(Change('node', where, f'{kind} is only in the reference', right=position))
    return found + _interface_changes(left.index.model, right.index.model)


def _node_changes(
    left: Program, right: Program, pairs: Alignment, ours: int, theirs: int
) -> Iterator[Change]:
    where, node, other = left.label(ours), left.index.nodes[ours], right.index.nodes[theirs]
    if (node.domain, node.op_type) != (other.domain, other.op_type):
        detail = f'is {_operator(node)}, in the reference {_operator(other)}'
        yield Change('node', where, detail, ours, theirs)
        mine, his = {}, {}
    else:
        mine, his = attributes(node, left.index.model), attributes(other, right.index.model)
    for name in sorted(mine.keys() | his.keys()):
        if _text(mine.get(name)) != _text(his.get(name)):
            detail = f'{node.op_type} {name}: {_short(mine.get(name))}, reference {_short(his.get(name))}'
            yield Change('attribute', where, detail, ours, theirs)
    for place in range(max(len(node.input), len(other.input))):
        names = [entry.input[place] if place < len(entry.input) else '' for entry in (node, other)]
        change = _input_change(left, right, pairs, *names)
        if change:
            kind, detail, size = change
            yield Change(kind, where, f'{node.op_type} input {place}: {detail}', ours, theirs, size)


def _operator(node: onnx.NodeProto) -> str:
    return f'{node.domain}.{node.op_type}' if node.domain not in ('', 'ai.onnx') else node.op_type


def _input_change(
    left: Program, right: Program, pairs: Alignment, name: str, other: str
) -> tuple[str, str, float | None] | None:
    ours, theirs = left.constants.get(name), right.constants.get(other)
    if ours is not None and theirs is not None:
        if ours is theirs:
            return None
        detail, size = constant_change(ours, theirs)
        return 'initializer', f'{name}: {detail}', size
    if ours is None and theirs is None:
        same = pairs.tensors.get(name) == other if name else not other
        sides = name or 'nothing', other or 'nothing'
        if sides[0] == sides[1]:
            sides = _with_origin(left, name), _with_origin(right, other)
        return None if same else ('wiring', f'reads {sides[0]}, reference {sides[1]}', None)
    sides = [
        f'the constant {tensor} {_short(value)}' if value is not None else (tensor or 'nothing')
        for tensor, value in ((name, ours), (other, theirs))
    ]
    return 'wiring', f'reads {sides[0]}, reference {sides[1]}', None


def _with_origin(program: Program, name: str) -> str:
    """Return a tensor with the node that makes it: where the names of two are equal they tell nothing."""
    position = program.index.producer(name)
    if position is None:
        return f'{name} (an input)'
    node, label = program.index.nodes[position], program.label(position)
    return f'{name} of {label} ({node.op_type})' if node.name else f'{name} of {label}'


def constant_change(ours: np.ndarray, theirs: np.ndarray) -> tuple[str, float | None]:
    """Return how two constants differ, and the largest change over the largest value on the right."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        sides = [f'{array.dtype} {"x".join(map(str, array.shape)) or "scalar"}' for array in (ours, theirs)]
        return f'is {sides[0]}, reference {sides[1]}', None
    if ours.dtype.kind not in 'fiu':
        return f'{int((ours != theirs).sum())} of {ours.size} values differ', None
    differs = ours != theirs
    largest = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0))
    scale = float(np.abs(theirs.astype(np.float64)).max(initial=0))
    detail = f'{int(differs.sum())} of {ours.size} values differ, by {largest:.3g} at most'
    if ours.size <= 4:
        detail += f' ({_short(ours)}, reference {_short(theirs)})'
    elif np.array_equal(np.sort(ours, axis=None), np.sort(theirs, axis=None)):
        detail += '; they are the same values in another order (transposed?)'
    return detail, largest / scale if scale else None


def attributes(node: onnx.NodeProto, model: onnx.ModelProto) -> dict[str, Any]:
    """Return name -> value of a node's attributes, defaults of the operator included."""
    found = dict(_defaults(node.op_type, node.domain, _version(model, node.domain)))
    for entry in node.attribute:
        if entry.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            continue
        value = helper.get_attribute_value(entry)
        found[entry.name] = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    return found


def _version(model: onnx.ModelProto, domain: str) -> int:
    aliases = ('', 'ai.onnx')
    for entry in model.opset_import:
        if entry.domain == domain or {entry.domain, domain} <= set(aliases):
            return entry.version
    return 0


@functools.cache
def _defaults(op_type: str, domain: str, version: int) -> tuple[tuple[str, Any], ...]:
    try:
        schema = onnx.defs.get_schema(op_type, version, '' if domain == 'ai.onnx' else domain)
    except onnx.defs.SchemaError:
        return ()
    entries = {name: entry.default_value for name, entry in schema.attributes.items()}
    return tuple((name, helper.get_attribute_value(entry)) for name, entry in entries.items() if entry.name)


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f'{value.dtype}{value.shape}{value.tobytes().hex()}'
    return repr(list(value)) if isinstance(value, list | tuple) else repr(value)


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        shape = 'x'.join(map(str, value.shape)) or 'scalar'
        return f'({value.dtype} {shape})' if value.size > 8 else str(value.tolist())
    if isinstance(value, bytes):
        value = value.decode(errors='replace')
    text = str(list(value) if isinstance(value, list | tuple) else value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + '...'


def _interface_changes(left: onnx.ModelProto, right: onnx.ModelProto) -> list[Change]:
    """Return differences in inputs, outputs, opsets, metadata and functions."""
    initial = {tensor.name for tensor in left.graph.initializer}, {t.name for t in right.graph.initializer}
    tables = [
        (
            'input',
            *(_values(model.graph.input, known) for model, known in zip((left, right), initial, strict=True)),
        ),
        ('output', *(_values(model.graph.output, set()) for model in (left, right))),
        ('opset', *({e.domain or 'ai.onnx': str(e.version) for e in m.opset_import} for m in (left, right))),
        ('metadata', *({e.key: e.value for e in m.metadata_props} for m in (left, right))),
        ('function', *({f.name: f'{len(f.node)} nodes' for f in m.functions} for m in (left, right))),
        ('domain', *(dict.fromkeys(_domains(m), 'used') for m in (left, right))),
    ]
    found = []
    for kind, mine, other in tables:
        for name in dict.fromkeys([*mine, *other]):
            if mine.get(name) != other.get(name):
                sides = [_short(side.get(name, 'not there')) for side in (mine, other)]
                found.append(Change(kind, name, f'{sides[0]}, reference {sides[1]}'))
    return found


def _domains(model: onnx.ModelProto) -> set[str]:
    return {node.domain or 'ai.onnx' for node in all_nodes(model)}


def _values(values: Sequence[onnx.ValueInfoProto], optional: set[str]) -> dict[str, str]:
    texts = {}
    for value in values:
        kind = value.type.tensor_type
        axes = [
            str(dim.dim_value) if dim.HasField('dim_value') else dim.dim_param or '?'
            for dim in kind.shape.dim
        ]
        name = onnx.TensorProto.DataType.Name(kind.elem_type)
        texts[value.name] = f'{name} {"x".join(axes)}' + (' with a default' if value.name in optional else '')
    return texts
