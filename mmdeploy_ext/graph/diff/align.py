"""Which node of one graph is which of another. Needs no torch.

Names say little: exporters number tensors, and tools rename them. Nodes are the same that compute the same
from the inputs on (everything before a difference), or that the same is computed from (everything behind it).
What is left, the differences themselves, is found from its neighbours.
"""

import collections
from collections.abc import Hashable, Iterator, Mapping, Sequence

from mmdeploy_ext.graph.diff.program import Alignment, Program
from mmdeploy_ext.graph.diff.structure import attributes, exact_text
from mmdeploy_ext.graph.io.index import bodies

Keys = dict[int, Hashable]


def align(left: Program, right: Program) -> Alignment:
    """Align two graphs; their constants must come from one `Constants`."""
    return _Aligner(left, right).run()


class _Aligner:
    """Two graphs and the nodes that were paired so far."""

    def __init__(self, left: Program, right: Program) -> None:
        self.left, self.right, self.programs = left, right, (left, right)
        self.tensors = dict(_interface(left.index.inputs, right.index.inputs))
        self.tensors.update(_interface(list(left.defaults), list(right.defaults)))
        self.nodes: dict[int, int] = {}
        self.taken: set[int] = set()

    def run(self) -> Alignment:
        """Pair nodes, the surest first."""
        left, right = self.left, self.right
        outputs = dict(_interface(left.index.outputs, right.index.outputs))
        self.tensors.update(outputs)  # whatever writes them: what the file promises is compared with its like
        own = {name: name for name in self.tensors.values()}
        forward = _forward(left, self.tensors), _forward(right, own)
        backward = _backward(left, outputs), _backward(right, {name: name for name in outputs.values()})
        self.pair_equal(*map(_both, forward, backward))  # a copy elsewhere is not taken for it
        self.pair_equal(*forward)
        self.pair_equal(*backward)
        for name, other in outputs.items():
            self.try_pair(*self.producers(name, other))
        self.spread()
        self.by_name()
        self.spread()
        self.replaced()
        return Alignment(self.nodes, self.tensors)

    def pair(self, ours: int, theirs: int) -> None:
        self.nodes[ours] = theirs
        self.taken.add(theirs)
        outputs = self.left.index.nodes[ours].output, self.right.index.nodes[theirs].output
        for name, other in zip(*outputs, strict=False):
            if name and other:
                self.tensors.setdefault(name, other)

    def try_pair(self, ours: int | None, theirs: int | None) -> bool:
        """Pair two nodes of one operator that are not paired yet; return whether that was done."""
        if ours is None or theirs is None or ours in self.nodes or theirs in self.taken:
            return False
        same = self.left.index.nodes[ours].op_type == self.right.index.nodes[theirs].op_type
        if same:
            self.pair(ours, theirs)
        return same

    def pair_equal(self, ours: Keys, theirs: Keys) -> None:
        """Pair nodes with the same key, in order."""
        waiting = collections.defaultdict(collections.deque)
        for position, key in theirs.items():
            if position not in self.taken:
                waiting[key].append(position)
        for position, key in ours.items():
            if position not in self.nodes and waiting[key]:
                self.pair(position, waiting[key].popleft())

    def spread(self) -> None:
        """Pair the neighbours of pairs: what writes the same input, what alone reads the same output."""
        waiting = collections.deque(self.nodes.items())
        while waiting:
            waiting.extend(pair for pair in self.neighbours(*waiting.popleft()) if self.try_pair(*pair))

    def neighbours(self, ours: int, theirs: int) -> Iterator[tuple[int | None, int | None]]:
        mine, other = self.left.index.nodes[ours], self.right.index.nodes[theirs]
        for name, second in zip(mine.input, other.input, strict=False):
            yield self.producers(name, second)
        for name, second in zip(mine.output, other.output, strict=False):
            if not name or not second:
                continue
            ours, theirs = _readers(self.left, name), _readers(self.right, second)
            if len(ours['Cast']) != len(theirs['Cast']):
                ours, theirs = _readers(self.left, name, True), _readers(self.right, second, True)
            for kind, readers in ours.items():
                if len(readers) == len(theirs[kind]):
                    yield from zip(readers, theirs[kind], strict=True)

    def producers(self, name: str, other: str) -> tuple[int | None, int | None]:
        """Return what makes two tensors, through a Cast that only one graph has (half precision)."""
        found = [self.left.index.producer(name), self.right.index.producer(other)]
        casts = [_is_cast(program, at) for program, at in zip(self.programs, found, strict=True)]
        if casts[0] != casts[1]:
            side = casts.index(True)
            index = self.programs[side].index
            found[side] = index.producer(index.nodes[found[side]].input[0])
        return found[0], found[1]

    def by_name(self) -> None:
        """Pair what is left by the names of nodes."""
        named = {self.right.index.nodes[position].name: position for position in self.right.steps}
        named.pop('', None)
        for position in self.left.steps:
            self.try_pair(position, named.get(self.left.index.nodes[position].name))

    def replaced(self) -> None:
        """Pair what is another operator in the same place: it reads the same, and is read alike."""
        waiting = collections.defaultdict(list)
        for position in self.right.steps:
            if position not in self.taken:
                waiting[_computed_inputs(self.right, position)].append(position)
        for position in [position for position in self.left.steps if position not in self.nodes]:
            key = tuple(self.tensors.get(name) for name in _computed_inputs(self.left, position))
            mates = [mate for mate in (waiting[key] if key else ()) if mate not in self.taken]
            mate = next((mate for mate in mates if self.read_alike(position, mate)), None)
            if mate is not None:
                self.pair(position, mate)

    def read_alike(self, ours: int, theirs: int) -> bool:
        """Return whether two first outputs are one graph output, or read at one place of a pair."""
        left, right = self.left.index, self.right.index
        pair = next(iter(left.writes(ours)), ''), next(iter(right.writes(theirs)), '')
        if not all(pair):
            return False
        readers = [reader for reader in left.consumers(pair[0]) if reader in self.nodes]
        return self.tensors.get(pair[0]) == pair[1] or any(
            pair in zip(left.nodes[at].input, right.nodes[self.nodes[at]].input, strict=False)
            for at in readers
        )


def _interface(left: Sequence[str], right: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pair inputs or outputs: by name, the rest by place when there are as many."""
    shared = set(left) & set(right)
    yield from ((name, name) for name in left if name in shared)
    rest = [[name for name in names if name not in shared] for names in (left, right)]
    if len(rest[0]) == len(rest[1]):
        yield from zip(*rest, strict=True)


def _both(forward: Keys, backward: Keys) -> Keys:
    return {position: (key, backward[position]) for position, key in forward.items()}


def _forward(program: Program, shared: Mapping[str, str]) -> Keys:
    """Return position -> key of what a node computes from the inputs.

    `shared` are the inputs of both graphs, as the right one calls them.
    """
    keys: Keys = {}

    def of_tensor(name: str) -> Hashable:
        position = program.index.producer(name)
        if name in program.constants:
            return ('constant', id(program.constants[name]))
        if position is None:
            return ('input', shared.get(name, (id(program), name)))
        return (keys[position], list(program.index.nodes[position].output).index(name))

    for position in program.steps:
        inputs = tuple(of_tensor(name) for name in program.index.reads(position))
        keys[position] = hash((*_plain(program, position), inputs))
    return keys


def _backward(program: Program, shared: Mapping[str, str]) -> Keys:
    """Return position -> key of what is computed from a node, its own constants included."""
    keys: Keys = {}
    index, constants = program.index, program.constants

    def readers(name: str) -> tuple[tuple[Hashable, int], ...]:
        known = [reader for reader in index.consumers(name) if reader in keys]
        return tuple(sorted((keys[reader], index.reads(reader).index(name)) for reader in known))

    for position in reversed(program.steps):
        outputs = index.nodes[position].output
        uses = tuple((place, shared.get(name), readers(name)) for place, name in enumerate(outputs))
        read = enumerate(index.reads(position))
        own = tuple((place, id(constants[name])) for place, name in read if name in constants)
        keys[position] = hash((*_plain(program, position), own, uses))
    return keys


def _plain(program: Program, position: int) -> tuple[Hashable, ...]:
    node = program.index.nodes[position]
    inner = tuple(tuple(entry.op_type for entry in body.node) for body in bodies(node))
    values = attributes(node, program.index.model).items()
    texts = tuple(sorted((name, exact_text(value)) for name, value in values))
    return node.domain, node.op_type, texts, inner


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


def _computed_inputs(program: Program, position: int) -> tuple[str, ...]:
    return tuple(name for name in program.index.reads(position) if name not in program.constants)
