"""Which node of one graph is which of another. Needs no torch.

Names say little: exporters number tensors, and tools rename them. Nodes are the same that compute the same
from the inputs on (everything before a difference), or that the same is computed from (everything behind it).
What is left, the differences themselves, is found from its neighbours.
"""

from __future__ import annotations

import collections
import functools
from typing import TYPE_CHECKING

from mmdeploy_ext.graph.diff.nodes import Alignment
from mmdeploy_ext.graph.diff.structure import attributes, exact_text
from mmdeploy_ext.graph.io.index import bodies

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from mmdeploy_ext.graph.diff.nodes import Program


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
        tuple(sorted((name, exact_text(value)) for name, value in values.items())),
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
