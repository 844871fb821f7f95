"""The alignment of two graphs: pairs of nodes and tensors. Needs no torch."""

import collections
from collections.abc import Hashable, Iterator, Mapping, Sequence

from mmdeploy_ext.graphs.diff.program import Alignment, Program
from mmdeploy_ext.graphs.diff.structure import attributes, exact_text
from mmdeploy_ext.graphs.io.index import bodies

Keys = dict[int, Hashable]
"""Position of a node -> key; nodes of two graphs with the same key are the same."""


def align(program: Program, reference: Program) -> Alignment:
    return _Aligner(program, reference).align()


class _Aligner:
    def __init__(self, program: Program, reference: Program) -> None:
        self.program, self.reference = program, reference
        self.tensors = dict(_pair_names(program.index.inputs, reference.index.inputs))
        self.tensors.update(_pair_names(list(program.defaults), list(reference.defaults)))
        self.nodes: dict[int, int] = {}
        self.paired_references: set[int] = set()

    def align(self) -> Alignment:
        program, reference = self.program, self.reference
        outputs = dict(_pair_names(program.index.outputs, reference.index.outputs))
        self.tensors.update(outputs)  # outputs are compared with their like, whatever node writes them
        reference_names = {name: name for name in self.tensors.values()}
        forward = _forward_keys(program, self.tensors), _forward_keys(reference, reference_names)
        reference_outputs = {name: name for name in outputs.values()}
        backward = _backward_keys(program, outputs), _backward_keys(reference, reference_outputs)
        both = [
            {position: (key, behind[position]) for position, key in before.items()}
            for before, behind in zip(forward, backward, strict=True)
        ]
        self.pair_equal(*both)  # first of all, so that a copy elsewhere in the graph is not paired instead
        self.pair_equal(*forward)
        self.pair_equal(*backward)
        for name, mate_name in outputs.items():
            self.try_pair(*self.producers(name, mate_name))
        self.pair_neighbours()
        reference_positions = {reference.index.nodes[position].name: position for position in reference.steps}
        reference_positions.pop('', None)
        for position in program.steps:
            self.try_pair(position, reference_positions.get(program.index.nodes[position].name))
        self.pair_neighbours()
        self.pair_replaced()
        return Alignment(self.nodes, self.tensors)

    def pair(self, position: int, mate: int) -> None:
        self.nodes[position] = mate
        self.paired_references.add(mate)
        outputs = self.program.index.nodes[position].output, self.reference.index.nodes[mate].output
        for name, mate_name in zip(*outputs, strict=False):
            if name and mate_name:
                self.tensors.setdefault(name, mate_name)

    def try_pair(self, position: int | None, mate: int | None) -> bool:
        if position is None or mate is None or position in self.nodes or mate in self.paired_references:
            return False
        if self.program.index.nodes[position].op_type != self.reference.index.nodes[mate].op_type:
            return False
        self.pair(position, mate)
        return True

    def pair_equal(self, keys: Keys, reference_keys: Keys) -> None:
        waiting = collections.defaultdict(collections.deque)
        for mate, key in reference_keys.items():
            if mate not in self.paired_references:
                waiting[key].append(mate)
        for position, key in keys.items():
            if position not in self.nodes and waiting[key]:
                self.pair(position, waiting[key].popleft())

    def pair_neighbours(self) -> None:
        waiting = collections.deque(self.nodes.items())
        while waiting:
            waiting.extend(pair for pair in self.neighbours(*waiting.popleft()) if self.try_pair(*pair))

    def neighbours(self, position: int, mate: int) -> Iterator[tuple[int | None, int | None]]:
        node, mate_node = self.program.index.nodes[position], self.reference.index.nodes[mate]
        for name, mate_name in zip(node.input, mate_node.input, strict=False):
            yield self.producers(name, mate_name)
        for name, mate_name in zip(node.output, mate_node.output, strict=False):
            if not name or not mate_name:
                continue
            readers, mate_readers = _readers(self.program, name), _readers(self.reference, mate_name)
            if len(readers['Cast']) != len(mate_readers['Cast']):
                readers = _readers(self.program, name, through_casts=True)
                mate_readers = _readers(self.reference, mate_name, through_casts=True)
            for operator, positions in readers.items():
                if len(positions) == len(mate_readers[operator]):
                    yield from zip(positions, mate_readers[operator], strict=True)

    def producers(self, name: str, mate_name: str) -> tuple[int | None, int | None]:
        index, reference_index = self.program.index, self.reference.index
        position, mate = index.producer(name), reference_index.producer(mate_name)
        is_cast, mate_is_cast = _is_cast(self.program, position), _is_cast(self.reference, mate)
        if is_cast and not mate_is_cast:
            position = index.producer(index.nodes[position].input[0])
        if mate_is_cast and not is_cast:
            mate = reference_index.producer(reference_index.nodes[mate].input[0])
        return position, mate

    def pair_replaced(self) -> None:
        waiting = collections.defaultdict(list)
        for position in self.reference.steps:
            if position not in self.paired_references:
                waiting[_computed_inputs(self.reference, position)].append(position)
        for position in [position for position in self.program.steps if position not in self.nodes]:
            inputs = tuple(self.tensors.get(name) for name in _computed_inputs(self.program, position))
            for mate in waiting[inputs] if inputs else ():
                if mate not in self.paired_references and self.are_read_alike(position, mate):
                    self.pair(position, mate)
                    break

    def are_read_alike(self, position: int, mate: int) -> bool:
        program, reference = self.program.index, self.reference.index
        outputs = next(iter(program.writes(position)), ''), next(iter(reference.writes(mate)), '')
        if not all(outputs):
            return False
        readers = [reader for reader in program.consumers(outputs[0]) if reader in self.nodes]
        return self.tensors.get(outputs[0]) == outputs[1] or any(
            outputs
            in zip(program.nodes[reader].input, reference.nodes[self.nodes[reader]].input, strict=False)
            for reader in readers
        )


def _pair_names(names: Sequence[str], reference_names: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from ((name, name) for name in names if name in reference_names)
    rest = [name for name in names if name not in reference_names]
    reference_rest = [name for name in reference_names if name not in names]
    if len(rest) == len(reference_rest):
        yield from zip(rest, reference_rest, strict=True)


def _forward_keys(program: Program, input_names: Mapping[str, str]) -> Keys:
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
    node = program.index.nodes[position]
    inner = tuple(tuple(inner_node.op_type for inner_node in body.node) for body in bodies(node))
    values = attributes(node, program.index.model).items()
    texts = tuple(sorted((name, exact_text(value)) for name, value in values))
    return node.domain, node.op_type, texts, inner


def _readers(program: Program, name: str, through_casts: bool = False) -> dict[str, list[int]]:
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
