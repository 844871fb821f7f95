"""The alignment of two graphs: which node of one is which of the other. Needs no torch.

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
"""Position of a node -> key; nodes of two graphs with the same key are the same."""


def align(left: Program, right: Program) -> Alignment:
    """Align two graphs; their constants must come from one `Constants`."""
    return _Aligner(left, right).align()


class _Aligner:
    """Two graphs, and the nodes that were paired so far: position in the left graph -> in the right one."""

    def __init__(self, left: Program, right: Program) -> None:
        self.left, self.right = left, right
        self.tensors = dict(_pair_names(left.index.inputs, right.index.inputs))
        self.tensors.update(_pair_names(list(left.defaults), list(right.defaults)))
        self.nodes: dict[int, int] = {}
        self.paired_right: set[int] = set()

    def align(self) -> Alignment:
        """Pair nodes, the surest first."""
        left, right = self.left, self.right
        outputs = dict(_pair_names(left.index.outputs, right.index.outputs))
        self.tensors.update(outputs)  # outputs are compared with their like, whatever node writes them
        right_names = {name: name for name in self.tensors.values()}
        forward = _forward_keys(left, self.tensors), _forward_keys(right, right_names)
        right_outputs = {name: name for name in outputs.values()}
        backward = _backward_keys(left, outputs), _backward_keys(right, right_outputs)
        both = [
            {position: (key, behind[position]) for position, key in before.items()}
            for before, behind in zip(forward, backward, strict=True)
        ]
        self.pair_equal(*both)  # first of all, so that a copy elsewhere in the graph is not paired instead
        self.pair_equal(*forward)
        self.pair_equal(*backward)
        for name, other in outputs.items():
            self.try_pair(*self.producers(name, other))
        self.pair_neighbours()
        right_positions = {right.index.nodes[position].name: position for position in right.steps}
        right_positions.pop('', None)
        for position in left.steps:
            self.try_pair(position, right_positions.get(left.index.nodes[position].name))
        self.pair_neighbours()
        self.pair_replaced()
        return Alignment(self.nodes, self.tensors)

    def pair(self, ours: int, theirs: int) -> None:
        self.nodes[ours] = theirs
        self.paired_right.add(theirs)
        outputs = self.left.index.nodes[ours].output, self.right.index.nodes[theirs].output
        for name, other in zip(*outputs, strict=False):
            if name and other:
                self.tensors.setdefault(name, other)

    def try_pair(self, ours: int | None, theirs: int | None) -> bool:
        """Pair two nodes of one operator that are not paired yet; return whether that was done."""
        if ours is None or theirs is None or ours in self.nodes or theirs in self.paired_right:
            return False
        if self.left.index.nodes[ours].op_type != self.right.index.nodes[theirs].op_type:
            return False
        self.pair(ours, theirs)
        return True

    def pair_equal(self, ours: Keys, theirs: Keys) -> None:
        """Pair nodes with the same key, in order."""
        waiting = collections.defaultdict(collections.deque)
        for position, key in theirs.items():
            if position not in self.paired_right:
                waiting[key].append(position)
        for position, key in ours.items():
            if position not in self.nodes and waiting[key]:
                self.pair(position, waiting[key].popleft())

    def pair_neighbours(self) -> None:
        """Pair the neighbours of pairs: what writes the same input, what alone reads the same output."""
        waiting = collections.deque(self.nodes.items())
        while waiting:
            waiting.extend(pair for pair in self.neighbours(*waiting.popleft()) if self.try_pair(*pair))

    def neighbours(self, ours: int, theirs: int) -> Iterator[tuple[int | None, int | None]]:
        node, other_node = self.left.index.nodes[ours], self.right.index.nodes[theirs]
        for name, other in zip(node.input, other_node.input, strict=False):
            yield self.producers(name, other)
        for name, other in zip(node.output, other_node.output, strict=False):
            if not name or not other:
                continue
            readers, other_readers = _readers(self.left, name), _readers(self.right, other)
            if len(readers['Cast']) != len(other_readers['Cast']):
                readers = _readers(self.left, name, through_casts=True)
                other_readers = _readers(self.right, other, through_casts=True)
            for operator, positions in readers.items():
                if len(positions) == len(other_readers[operator]):
                    yield from zip(positions, other_readers[operator], strict=True)

    def producers(self, name: str, other: str) -> tuple[int | None, int | None]:
        """Return the nodes that make two tensors, before a Cast that only one graph has (half precision)."""
        left, right = self.left.index.producer(name), self.right.index.producer(other)
        left_is_cast, right_is_cast = _is_cast(self.left, left), _is_cast(self.right, right)
        if left_is_cast and not right_is_cast:
            left = self.left.index.producer(self.left.index.nodes[left].input[0])
        if right_is_cast and not left_is_cast:
            right = self.right.index.producer(self.right.index.nodes[right].input[0])
        return left, right

    def pair_replaced(self) -> None:
        """Pair nodes with another operator in the same place: they read the same, and are read alike."""
        waiting = collections.defaultdict(list)
        for position in self.right.steps:
            if position not in self.paired_right:
                waiting[_computed_inputs(self.right, position)].append(position)
        for position in [position for position in self.left.steps if position not in self.nodes]:
            inputs = tuple(self.tensors.get(name) for name in _computed_inputs(self.left, position))
            for mate in waiting[inputs] if inputs else ():
                if mate not in self.paired_right and self.are_read_alike(position, mate):
                    self.pair(position, mate)
                    break

    def are_read_alike(self, ours: int, theirs: int) -> bool:
        """Return whether two first outputs are one graph output, or read at one place of a pair."""
        left, right = self.left.index, self.right.index
        outputs = next(iter(left.writes(ours)), ''), next(iter(right.writes(theirs)), '')
        if not all(outputs):
            return False
        readers = [reader for reader in left.consumers(outputs[0]) if reader in self.nodes]
        return self.tensors.get(outputs[0]) == outputs[1] or any(
            outputs in zip(left.nodes[reader].input, right.nodes[self.nodes[reader]].input, strict=False)
            for reader in readers
        )


def _pair_names(left: Sequence[str], right: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pair inputs or outputs: by name, the rest by place when there are as many."""
    shared = set(left) & set(right)
    yield from ((name, name) for name in left if name in shared)
    rest = [[name for name in names if name not in shared] for names in (left, right)]
    if len(rest[0]) == len(rest[1]):
        yield from zip(*rest, strict=True)


def _forward_keys(program: Program, input_names: Mapping[str, str]) -> Keys:
    """Return a key per node of what it computes from the inputs.

    `input_names` are the inputs of both graphs, as the right one calls them.
    """
    keys: Keys = {}

    def tensor_key(name: str) -> Hashable:
        position = program.index.producer(name)
        if name in program.constants:
            return ('constant', id(program.constants[name]))
        if position is None:
            return ('input', input_names.get(name, (id(program), name)))
        return (keys[position], list(program.index.nodes[position].output).index(name))

    for position in program.steps:
        inputs = tuple(tensor_key(name) for name in program.index.reads(position))
        keys[position] = hash((*_operation(program, position), inputs))
    return keys


def _backward_keys(program: Program, output_names: Mapping[str, str]) -> Keys:
    """Return a key per node of what is computed from it, its own constants included."""
    keys: Keys = {}
    index, constants = program.index, program.constants
    for position in reversed(program.steps):
        uses = []
        for place, name in enumerate(index.nodes[position].output):
            readers = [
                (keys[reader], index.reads(reader).index(name))
                for reader in index.consumers(name)
                if reader in keys
            ]
            uses.append((place, output_names.get(name), tuple(sorted(readers))))
        inputs = enumerate(index.reads(position))
        constant_inputs = tuple((place, id(constants[name])) for place, name in inputs if name in constants)
        keys[position] = hash((*_operation(program, position), constant_inputs, tuple(uses)))
    return keys


def _operation(program: Program, position: int) -> tuple[Hashable, ...]:
    """Return operator and attributes of a node, and the operators of its bodies."""
    node = program.index.nodes[position]
    inner = tuple(tuple(inner_node.op_type for inner_node in body.node) for body in bodies(node))
    values = attributes(node, program.index.model).items()
    texts = tuple(sorted((name, exact_text(value)) for name, value in values))
    return node.domain, node.op_type, texts, inner


def _readers(program: Program, name: str, through_casts: bool = False) -> dict[str, list[int]]:
    """Return operator -> nodes that read a tensor, or read it behind a Cast."""
    readers: dict[str, list[int]] = collections.defaultdict(list)
    for position in program.index.consumers(name):
        node = program.index.nodes[position]
        if through_casts and node.op_type == 'Cast':
            for operator, positions in _readers(program, node.output[0]).items():
                readers[operator].extend(positions)
        else:
            readers[node.op_type].append(position)
    return readers


def _is_cast(program: Program, position: int | None) -> bool:
    return position is not None and program.index.nodes[position].op_type == 'Cast'


def _computed_inputs(program: Program, position: int) -> tuple[str, ...]:
    return tuple(name for name in program.index.reads(position) if name not in program.constants)
