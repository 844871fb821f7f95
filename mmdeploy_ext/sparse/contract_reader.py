"""What the libspconv engine's parser holds in memory after it has read a file: a port of its rules.

The parser reads attributes by field, never looks at their declared type, takes defaults in silence, reads
inputs by position without counting them, and goes on with an empty array where an initializer does not suit
it. Here every such step leaves a `Violation` that says what the engine would do.

Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, libraries/3DSparseConvolution, the ONNX parser (its
behaviour, in own words). Needs onnx and numpy only.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

ERROR, WARNING = 'error', 'warning'
DEFAULT_OUTPUT_BOUND = 150000
DEFAULT_LAUNCH_POINTS = 10000
INT8 = 'int8'


@dataclasses.dataclass(frozen=True)
class Violation:
    """One thing in a file that the engine would not do as the author meant.

    Attributes:
        node: name of the node; '' for the file as a whole.
        attribute: attribute, initializer or tensor that it is about; '' for the node as a whole.
        rule: short name of the rule, e.g. 'missing-bias'.
        message: what is there, what was expected, what the engine does with it.
        severity: 'error': wrong or no results; 'warning': probably not what was meant.
    """

    node: str
    attribute: str
    rule: str
    message: str
    severity: str = ERROR


@dataclasses.dataclass(frozen=True)
class Field:
    """One attribute: its name, the ONNX type that it must have, and what stands in when it is missing."""

    name: str
    kind: str
    default: Any
    needed: str = ''
    """Severity of its absence; '' when the default is what a plain file means."""


PRECISIONS = (Field('precision', 'STRING', ''), Field('output_precision', 'STRING', ''))
ADD_FIELDS = (
    Field('input0_dynamic_range', 'FLOAT', 0.0),
    Field('input1_dynamic_range', 'FLOAT', 0.0),
    *PRECISIONS,
)
READ = {
    'SparseConvolution': (
        Field('kernel_size', 'INTS', (), ERROR),
        Field('stride', 'INTS', (), ERROR),
        Field('padding', 'INTS', (), ERROR),
        Field('dilation', 'INTS', (), ERROR),
        Field('subm', 'INT', 0, ERROR),
        Field('inverse', 'INT', 0),
        Field('activation', 'STRING', '', WARNING),
        Field('output_bound', 'INT', DEFAULT_OUTPUT_BOUND, WARNING),
        Field('rulebook', 'STRING', ''),
        Field('input_dynamic_range', 'FLOAT', 0.0),
        Field('weight_dynamic_ranges', 'FLOATS', ()),
        Field('fixed_launch_points', 'INT', DEFAULT_LAUNCH_POINTS),
        *PRECISIONS,
    ),
    'Add': ADD_FIELDS,
    'QuantAdd': ADD_FIELDS,
    'Relu': (),
    'ScatterDense': (
        Field('input_spatial_shape', 'INTS', (), ERROR),
        Field('output_shape', 'INTS', (), ERROR),
        Field('format', 'STRING', '', ERROR),
        Field('input_dynamic_range', 'FLOAT', 0.0),
        Field('output_layout', 'STRING', ''),
    ),
    'Transpose': (Field('dims', 'INTS', (), ERROR),),
    'Reshape': (Field('dims', 'INTS', (), ERROR),),
}
"""Operator -> every attribute that the parser reads."""
WRITTEN = (
    Field('ndim', 'INT', 3),
    Field('in_channels', 'INT', 0),
    Field('out_channels', 'INT', 0),
    Field('groups', 'INT', 1),
    Field('transposed', 'INT', 0),
    Field('output_padding', 'INTS', ()),
    Field('input_spatial_shape', 'INTS', ()),
    Field('output_spatial_shape', 'INTS', ()),
    Field('output_shape', 'INTS', ()),
)
"""Attributes of a convolution that exporters write and the parser never reads."""
INPUTS = {'SparseConvolution': 3, 'Add': 2, 'QuantAdd': 2}
"""Inputs that the parser takes by position; 1 elsewhere."""
EMPTY = {'INT': 0, 'FLOAT': 0.0, 'STRING': '', 'INTS': (), 'FLOATS': ()}
"""What protobuf gives for a field that an attribute of another type has left unset."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One node as the engine knows it.

    Attributes:
        name: of the node; its operator and index when it has none.
        op_type: of the node.
        inputs: names of tensors, without the initializers.
        output: name of the tensor.
        values: every attribute that the parser reads, defaults filled in.
        written: attributes of convolutions that only their author reads.
        weight: (O, k0, k1, k2, I) float16; empty where the parser could not take it.
        bias: (O,) float16; likewise.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    output: str
    values: dict[str, Any]
    written: dict[str, Any]
    weight: np.ndarray
    bias: np.ndarray

    @property
    def is_convolution(self) -> bool:
        """Whether it is a sparse convolution."""
        return self.op_type == 'SparseConvolution'


def read_attribute(node: onnx.NodeProto, field: Field) -> tuple[Any, onnx.AttributeProto | None]:
    """Return the value that the parser reads and the attribute that it reads it from, if there is one."""
    for attribute in node.attribute:
        if attribute.name == field.name:
            return _of_kind(attribute, field.kind), attribute
    return field.default, None


def _of_kind(attribute: onnx.AttributeProto, kind: str) -> Any:
    if kind == 'STRING':
        return attribute.s.decode('utf-8', 'replace')
    if kind in ('INTS', 'FLOATS'):
        return tuple(attribute.ints if kind == 'INTS' else attribute.floats)
    return attribute.i if kind == 'INT' else attribute.f


def text(value: str | bytes) -> str:
    """Return a name; of a damaged file protobuf gives bytes where they are no UTF-8."""
    return value if isinstance(value, str) else value.decode('utf-8', 'replace')


def node_name(node: onnx.NodeProto, index: int) -> str:
    """Return a node's name, or something that finds it in a listing."""
    return text(node.name) or f'{text(node.op_type) or "node"} #{index}'


class Reader:
    """Reads a graph as the engine does.

    Attributes:
        layers: what it holds, in file order.
        violations: what it swallowed.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        """Read it."""
        self.graph = graph
        self.violations: list[Violation] = []
        self.layers: list[Layer] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        for tensor in graph.initializer:
            if tensor.name in self._initializers:
                self._add(
                    '',
                    tensor.name,
                    'initializer-twice',
                    f'initializer {tensor.name!r} is there twice; the engine takes the first',
                    WARNING,
                )
            self._initializers.setdefault(tensor.name, tensor)
        known = {entry.name for entry in graph.input}
        for index, node in enumerate(graph.node):
            self._read(node, index, known)

    def _add(self, node: str, attribute: str, rule: str, message: str, severity: str = ERROR) -> None:
        self.violations.append(Violation(node, attribute, rule, message, severity))

    def _read(self, node: onnx.NodeProto, index: int, known: set[str]) -> None:
        name = node_name(node, index)
        if node.op_type not in READ:
            self._add(
                name,
                '',
                'unknown-operator',
                f'operator {node.op_type!r}; the engine knows '
                f'{", ".join(READ)}, prints "Unsupport operator" and builds nothing',
            )
            known.update(node.output)
            return
        count = INPUTS.get(node.op_type, 1)
        self._count_inputs(node, name, count)
        tensors = tuple(map(text, node.input[:1] if count == 3 else node.input[:count]))
        for tensor in tensors:
            if tensor not in known:
                self._add(
                    name,
                    tensor,
                    'unknown-tensor',
                    f'input {tensor!r} is neither a graph input nor the '
                    f'output of a node before it; the engine puts a null pointer there',
                )
        if not node.output:
            self._add(name, '', 'no-output', 'has no output; the engine reads past the end of the list')
        output = text(node.output[0]) if node.output else ''
        if output in known and output:
            self._add(
                name,
                output,
                'output-twice',
                f'output {output!r} has been given before; nodes after this one take it from here',
            )
        known.add(output)
        weight = bias = np.zeros(0, np.float16)
        if count == 3:
            weight = self._initializer(name, node.input[1]) if len(node.input) > 1 else weight
            bias = self._initializer(name, node.input[2]) if len(node.input) > 2 else bias
        values = {field.name: self._value(node, name, field) for field in READ[node.op_type]}
        written = {field.name: read_attribute(node, field)[0] for field in WRITTEN if count == 3}
        self.layers.append(Layer(name, node.op_type, tensors, output, values, written, weight, bias))

    def _count_inputs(self, node: onnx.NodeProto, name: str, count: int) -> None:
        """Report inputs that the parser takes by position and that are not there."""
        if len(node.input) >= count:
            if len(node.input) > count:
                self._add(
                    name,
                    '',
                    'extra-input',
                    f'has {len(node.input)} inputs, the engine takes the first {count}',
                    WARNING,
                )
            return
        if count == 3 and len(node.input) == 2:
            self._add(
                name,
                '',
                'missing-bias',
                'has no bias: inputs are (x, weight), expected (x, weight, '
                'bias); the engine reads input 2 without looking and aborts in protobuf. '
                'Fold BatchNorm into the convolutions before exporting',
            )
            return
        self._add(
            name,
            '',
            'missing-input',
            f'has {len(node.input)} inputs, expected {count}; the engine reads past the end of the list',
        )

    def _initializer(self, node: str, name: str) -> np.ndarray:
        """Return an initializer as the parser takes it: FLOAT16 in raw_data of the right length, or empty."""
        nothing = np.zeros(0, np.float16)
        tensor = self._initializers.get(name)
        goes_on = 'the engine logs it and goes on with no values'
        if tensor is None:
            self._add(
                node, name, 'initializer-missing', f'initializer {name!r} is not in the file; {goes_on}'
            )
            return nothing
        if tensor.data_type != onnx.TensorProto.FLOAT16:
            kinds = {number: kind for kind, number in onnx.TensorProto.DataType.items()}
            self._add(
                node,
                name,
                'initializer-type',
                f'initializer {name!r} is '
                f'{kinds.get(tensor.data_type, tensor.data_type)}, expected FLOAT16; {goes_on}',
            )
            return nothing
        shape = tuple(tensor.dims)
        expected = 2 * int(np.prod(shape, dtype=np.int64))
        if len(tensor.raw_data) != expected:
            elsewhere = ' (its values are in another field or file)' if not tensor.raw_data else ''
            self._add(
                node,
                name,
                'initializer-bytes',
                f'initializer {name!r} has {len(tensor.raw_data)} bytes of '
                f'raw_data{elsewhere}, expected {expected} for {list(shape)}; {goes_on}',
            )
            return nothing
        return np.frombuffer(tensor.raw_data, '<f2').reshape(shape)

    def _value(self, node: onnx.NodeProto, name: str, field: Field) -> Any:
        value, attribute = read_attribute(node, field)
        shown = repr(value) if value != () else 'an empty list'
        if attribute is None:
            if field.needed:
                self._add(
                    name,
                    field.name,
                    'attribute-missing',
                    f'has no attribute {field.name!r}; the engine takes {shown} in silence',
                    field.needed,
                )
            return value
        kinds = {number: kind for kind, number in onnx.AttributeProto.AttributeType.items()}
        got = kinds.get(attribute.type, str(attribute.type))
        if got != field.kind:
            self._add(
                name,
                field.name,
                'attribute-type',
                f'attribute {field.name!r} is {got}, expected {field.kind}; the engine reads {shown}',
            )
        return value


def attributes_twice(graph: onnx.GraphProto) -> Iterator[Violation]:
    """Report attributes that a node has twice: the engine takes the first."""
    for index, node in enumerate(graph.node):
        names = [attribute.name for attribute in node.attribute]
        for name in sorted({name for name in names if names.count(name) > 1}):
            message = f'attribute {name!r} is there {names.count(name)} times; the engine takes the first'
            yield Violation(node_name(node, index), name, 'attribute-twice', message, WARNING)
