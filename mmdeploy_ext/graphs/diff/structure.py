"""The changes between two graphs with aligned nodes. Needs no torch."""

import collections
import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.base.arrays import ArrayDistance
from mmdeploy_ext.base.errors import InferenceError, shape_text
from mmdeploy_ext.graphs.diff.program import OUTPUT_TIES, Alignment, NodeRunner, Program
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import (
    all_nodes,
    array_bytes,
    bodies,
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


# The alignment of two graphs: pairs of nodes and tensors.


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


# Walk a graph node by node, each fed with the values of a reference.


BORN_RTOL = 1e-5
"""One node on the same inputs: float32 rounding stays below it, a wrong epsilon or weight does not."""
FREE_RTOL = 1e-4
"""A whole model; the default tolerance of the proof."""
FEW_VALUES = 4
"""Tensors of so few values may be equal by chance."""

EQUAL, BORN, PASSED, INNER, UNKNOWN = 'equal', 'born here', 'passed on', 'inner', 'unknown'
"""States of a tensor, see `Row.state`."""


@dataclasses.dataclass(frozen=True)
class ReferenceTensor:
    """The expected values of a tensor.

    Attributes:
        value: same shape as the tensor, unless `how` is 'value', 'order' or 'module'.
        label: name of a PyTorch module, a tap, or a tensor of a graph.
        module: path of the PyTorch module, or ''.
        how: kind of the pairing: 'structure' of two files; 'name', equal 'value', place in a 'module' or in
            the 'order' of execution; 'values' or 'export' by a fresh export.
        record: place in PyTorch's order of execution, or -1.
    """

    value: np.ndarray
    label: str = ''
    module: str = ''
    how: str = 'name'
    record: int = -1


@dataclasses.dataclass
class Row:
    """One tensor of the walk.

    Attributes:
        position: index of the node; None for a graph output that is an input.
        shape: None if this node or one before it failed.
        reference: expected values, or None.
        error: error of the value in the whole model; None without a reference or value.
        born: error of the node alone on the reference's values; inf also if it fails on them.
        reason: why numbers cannot be compared, or why the node failed.
    """

    position: int | None
    tensor: str
    shape: tuple[int, ...] | None = None
    reference: ReferenceTensor | None = None
    error: float | None = None
    born: float | None = None
    reason: str = ''

    def state(self, born_rtol: float = BORN_RTOL, rtol: float = FREE_RTOL) -> str:
        if self.born is not None and self.born > born_rtol:
            return BORN
        if self.error is not None and self.error > rtol:
            return PASSED
        if self.reference is None:
            return UNKNOWN if self.shape is None else INNER
        return EQUAL if self.error is not None else UNKNOWN


@dataclasses.dataclass
class Walk:
    """The result of a walk.

    Attributes:
        rows: tensor -> row, in topological order.
        free: tensor -> value from the graph's inputs.
        good: tensor -> value of the reference, or computed from the reference's values.
    """

    program: Program
    rows: dict[str, Row]
    free: dict[str, np.ndarray]
    good: dict[str, np.ndarray]

    def latest_input(self, position: int) -> int:
        """Return the largest `record` among the references of a node's inputs, or -1."""
        rows = [self.rows[name] for name in self.program.index.reads(position) if name in self.rows]
        return max((row.reference.record for row in rows if row.reference is not None), default=-1)


def walk(
    program: Program,
    feeds: Mapping[str, np.ndarray],
    references: Mapping[str, ReferenceTensor],
    runner: NodeRunner,
    lookup: Callable[[Walk, str, int, np.ndarray], ReferenceTensor | None] | None = None,
) -> Walk:
    """Run each node of a graph on the reference's values and compare its outputs.

    - `feeds`: input -> array of its dtype.
    - `references`: tensor -> expected values that are known before the walk.
    - `runner`: shared by walks, it runs equal nodes on equal values once.
    - `lookup`: (walk so far, tensor, position of its node, fed value) -> a reference, or None.
    """
    base = {**program.constants, **program.defaults, **feeds}
    result = Walk(program, rows={}, free=dict(base), good=dict(base))
    for position in program.steps:
        free, free_failure = _run(program, position, result.free, runner)
        fed, fed_failure = _run(program, position, result.good, runner)
        for place, tensor in enumerate(program.index.writes(position)):
            row = Row(position, tensor, reason=fed_failure or free_failure)
            result.rows[tensor] = row
            if free is not None:
                result.free[tensor], row.shape = free[place], getattr(free[place], 'shape', ())
            value = None if fed is None else fed[place]
            reference = references.get(tensor)
            if reference is None and lookup is not None and isinstance(value, np.ndarray):
                reference = lookup(result, tensor, position, value)
            if reference is None:
                if value is not None:
                    result.good[tensor] = value
                continue
            want = _in_shape_of(reference, value)  # in its dtype: what float16 cannot hold is an error
            row.reference, result.good[tensor] = reference, want
            if value is not None:
                result.good[tensor] = _in_width_of(want, value)
            node = program.index.nodes[position]
            is_tied = value is not None and _is_tied(node, place, value, result.good, want)
            row.born, reason = (0.0, '') if is_tied else compare(value, want)
            row.reason = row.reason or reason
            if free is not None:
                is_same = is_tied and np.array_equal(free[place], value)
                row.error, reason = (0.0, '') if is_same else compare(free[place], want)
                row.reason = row.reason or reason
            if value is None and fed_failure:
                row.born = math.inf
    _add_constant_outputs(result, references)
    return result


def _add_constant_outputs(walk: Walk, references: Mapping[str, ReferenceTensor]) -> None:
    index = walk.program.index
    for name in index.outputs:
        reference = references.get(name)
        if name in walk.rows or name not in walk.free or reference is None:
            continue
        error, reason = compare(walk.free[name], reference.value)
        if error and not reason and name in walk.program.constants:
            reason = 'is a constant in this file'
        shape = walk.free[name].shape
        walk.rows[name] = Row(index.producer(name), name, shape, reference, error, error, reason)


def compare(got: Any, want: Any) -> tuple[float | None, str]:
    """Return the error of a tensor, and why the error is infinite, or ''.

    The error is the largest difference over the largest finite magnitude of `want`; of integers, booleans,
    texts and bfloat16 the share of values that differ.
    """
    if not isinstance(got, np.ndarray) or not isinstance(want, np.ndarray):
        return None, ''
    if got.shape != want.shape:
        return math.inf, f'shape {shape_text(got.shape)}, expected {shape_text(want.shape)}'
    if got.size == 0 or got is want:
        return 0.0, ''
    kinds = {got.dtype.kind, want.dtype.kind}
    if kinds != {'f'}:
        if 'f' in kinds:
            return math.inf, f'dtype {got.dtype}, expected {want.dtype}'
        return float(np.mean(got != want)), ''
    distance = ArrayDistance(got, want)
    if math.isinf(distance.max_abs):
        return math.inf, 'NaN or infinity where the reference has a number, or the other way round'
    return distance.max_rel, 'the reference is 0 everywhere' if math.isinf(distance.max_rel) else ''


def is_informative(value: np.ndarray) -> bool:
    """Whether more than `FEW_VALUES` floats are not all equal."""
    return value.dtype.kind == 'f' and value.size > FEW_VALUES and float(np.ptp(np.nan_to_num(value))) > 0


def _run(
    program: Program, position: int, values: Mapping[str, np.ndarray], runner: NodeRunner
) -> tuple[list[np.ndarray] | None, str]:
    if not values.keys() >= set(program.index.reads(position)):
        return None, ''
    try:
        return runner.run(program, position, values), ''
    except InferenceError as error:
        return None, f'the node fails: {error}'


def _in_shape_of(reference: ReferenceTensor, value: np.ndarray | None) -> np.ndarray:
    want, how = reference.value, reference.how
    if value is None:
        return want
    is_flattened = how in ('order', 'module') and want.ndim != value.ndim and want.size == value.size
    return want.reshape(value.shape) if how == 'value' or is_flattened else want


def _in_width_of(want: np.ndarray, value: np.ndarray) -> np.ndarray:
    if not isinstance(want, np.ndarray) or not isinstance(value, np.ndarray):
        return want
    if value.dtype == want.dtype or value.dtype.kind != want.dtype.kind:
        return want
    with np.errstate(over='ignore'):
        return want.astype(value.dtype)


def _is_tied(
    node: onnx.NodeProto, place: int, value: np.ndarray, good: Mapping[str, np.ndarray], want: np.ndarray
) -> bool:
    if OUTPUT_TIES.get(node.op_type) != place or value.shape != want.shape:
        return False
    axis = next((entry.i for entry in node.attribute if entry.name == 'axis'), -1)
    source = good[node.input[0]]
    if want.dtype.kind not in 'iu' or want.max(initial=0) >= source.shape[axis]:
        return False
    picked, expected = (np.take_along_axis(source, indices, axis) for indices in (value, want))
    return bool(np.allclose(picked, expected, rtol=1e-6, atol=0))
