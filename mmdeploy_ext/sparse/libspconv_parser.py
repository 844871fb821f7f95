"""The nodes of a libspconv file as NVIDIA's engine reads them, with what it would read wrongly in silence.

Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, libraries/3DSparseConvolution, the ONNX parser (its
behaviour, in own words). Needs onnx and numpy only.

Glossary: O output and I input channels of a convolution, k0, k1, k2 its kernel.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx

from mmdeploy_ext.core.violations import ERROR, WARNING, Violation

GEOMETRY = {'kernel_size': 1, 'stride': 1, 'padding': 0, 'dilation': 1}
"""Attribute of a convolution with a value per axis -> its smallest value."""
ADDITIONS = ('Add', 'QuantAdd')
"""Operators that add two tensors."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One attribute that the parser may read.

    Attributes:
        name: name of the attribute.
        kind: ONNX type that it must have.
        default: value that stands in when it is missing.
        severity: severity of the violation if it is missing; '' if a file may leave it out.
    """

    name: str
    kind: str
    default: Any
    severity: str = ''


PRECISION_FIELDS = (Field('precision', 'STRING', ''), Field('output_precision', 'STRING', ''))
"""Attributes of convolutions and additions."""
ADD_FIELDS = (
    Field('input0_dynamic_range', 'FLOAT', 0.0),
    Field('input1_dynamic_range', 'FLOAT', 0.0),
    *PRECISION_FIELDS,
)
"""Attributes of an addition."""
READ = {
    'SparseConvolution': (
        *(Field(name, 'INTS', (), ERROR) for name in GEOMETRY),
        Field('subm', 'INT', 0, ERROR),
        Field('inverse', 'INT', 0),
        Field('activation', 'STRING', '', WARNING),
        Field('output_bound', 'INT', 150000, WARNING),
        Field('rulebook', 'STRING', ''),
        Field('input_dynamic_range', 'FLOAT', 0.0),
        Field('weight_dynamic_ranges', 'FLOATS', ()),
        Field('fixed_launch_points', 'INT', 10000),
        *PRECISION_FIELDS,
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
UNREAD = (
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
"""Attributes of a convolution that exporters write and the parser never reads, as far as rules need them."""


@dataclasses.dataclass(frozen=True)
class ParsedNode:
    """One node as the engine holds it.

    Attributes:
        name: name of the node; its operator and index when it has none.
        op_type: SparseConvolution, Add, QuantAdd, Relu, ScatterDense, Transpose or Reshape.
        inputs, output: names of tensors, without the initializers.
        values: every attribute that the parser reads, defaults filled in.
        unread: the attributes `UNREAD` of a convolution, defaults filled in; {} of other nodes.
        weight: (O, k0, k1, k2, I) float16, in the file's own shape if that is another; empty if the parser
            could not take it, and of other nodes than convolutions.
        bias: (O,) float16; likewise.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    output: str
    values: dict[str, Any]
    unread: dict[str, Any]
    weight: np.ndarray
    bias: np.ndarray

    @property
    def is_convolution(self) -> bool:
        """Whether it is a sparse convolution."""
        return self.op_type == 'SparseConvolution'

    @property
    def input_ranges(self) -> dict[str, float]:
        """The ranges (amax) of its inputs, by the name of the attribute; 0 where the file has none."""
        return {name: value for name, value in self.values.items() if name.endswith('dynamic_range')}


def _attribute(node: onnx.NodeProto, field: Field) -> tuple[Any, onnx.AttributeProto | None]:
    """Return the value that the parser reads, and the attribute that it reads it from, if there is one.

    The parser looks at the field of protobuf that holds values of the expected type, never at the type.
    """
    attribute = next((attribute for attribute in node.attribute if attribute.name == field.name), None)
    if attribute is None:
        return field.default, None
    if field.kind == 'STRING':
        return attribute.s.decode('utf-8', 'replace'), attribute
    if field.kind in ('INT', 'FLOAT'):
        return (attribute.i if field.kind == 'INT' else attribute.f), attribute
    return tuple(attribute.ints if field.kind == 'INTS' else attribute.floats), attribute


def _decoded(name: str | bytes) -> str:
    """Return a name as text; protobuf returns bytes for a name in a damaged file that is not UTF-8."""
    return name if isinstance(name, str) else name.decode('utf-8', 'replace')


class EngineParser:
    """Reads a graph as the engine does: `nodes` in file order, `violations`, most of them silently accepted.

    The parser reads attributes by field, never looks at their declared type, takes defaults in silence, reads
    inputs by position without counting them, and goes on with an empty array if an initializer does not suit
    it. Here every such step leaves a `Violation` with the engine's behaviour. Nodes of operators that the
    engine does not have are in `violations` alone.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        """Read all nodes; no graph is refused."""
        self.violations: list[Violation] = []
        self.nodes: list[ParsedNode] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        for tensor in graph.initializer:
            if tensor.name in self._initializers:
                message = f'initializer {tensor.name!r} is there twice; the engine takes the first'
                self._report('', tensor.name, 'initializer-twice', message, WARNING)
            self._initializers.setdefault(tensor.name, tensor)
        tensors = {entry.name for entry in graph.input}
        for index, node in enumerate(graph.node):
            name = _decoded(node.name) or f'{_decoded(node.op_type) or "node"} #{index}'
            if node.op_type in READ:
                self._parse(node, name, tensors)
            else:
                message = f'operator {node.op_type!r}; the engine knows {", ".join(READ)}, prints "Unsupport '
                self._report(name, '', 'unknown-operator', f'{message}operator" and builds nothing')
                tensors.update(node.output)
            attributes = [attribute.name for attribute in node.attribute]
            for attribute in sorted({entry for entry in attributes if attributes.count(entry) > 1}):
                message = f'attribute {attribute!r} is there {attributes.count(attribute)} times; the engine '
                self._report(name, attribute, 'attribute-twice', message + 'takes the first', WARNING)

    def _report(self, node: str, attribute: str, rule: str, message: str, severity: str = ERROR) -> None:
        self.violations.append(Violation(node, attribute, rule, message, severity))

    def _parse(self, node: onnx.NodeProto, name: str, tensors: set[str]) -> None:
        """Read a node of an operator that the engine has.

        `tensors` are the names of those that nodes before it give; its output is added.
        """
        is_convolution = node.op_type == 'SparseConvolution'
        self._count_inputs(node, name)
        inputs = tuple(map(_decoded, node.input[: 2 if node.op_type in ADDITIONS else 1]))
        for tensor in inputs:
            if tensor not in tensors:
                message = f'input {tensor!r} is neither a graph input nor the output of a node before it; '
                self._report(name, tensor, 'unknown-tensor', f'{message}the engine puts a null pointer there')
        if not node.output:
            self._report(name, '', 'no-output', 'has no output; the engine reads past the end of the list')
        output = _decoded(node.output[0]) if node.output else ''
        if output in tensors and output:
            message = f'output {output!r} has been given before; nodes after this one take it from here'
            self._report(name, output, 'output-twice', message)
        tensors.add(output)
        weight = bias = np.zeros(0, np.float16)
        if is_convolution and len(node.input) > 1:
            weight = self._initializer(name, node.input[1])
        if is_convolution and len(node.input) > 2:
            bias = self._initializer(name, node.input[2])
        values = {field.name: self._value(node, name, field) for field in READ[node.op_type]}
        unread = {field.name: _attribute(node, field)[0] for field in UNREAD} if is_convolution else {}
        self.nodes.append(ParsedNode(name, node.op_type, inputs, output, values, unread, weight, bias))

    def _count_inputs(self, node: onnx.NodeProto, name: str) -> None:
        """Report inputs that the parser takes by position and that are not there, and those it ignores."""
        expected = {'SparseConvolution': 3, 'Add': 2, 'QuantAdd': 2}.get(node.op_type, 1)
        count = len(node.input)
        if count > expected:
            message = f'has {count} inputs, the engine takes the first {expected}'
            self._report(name, '', 'extra-input', message, WARNING)
        elif expected == 3 and count == 2:
            message = (
                'has no bias: inputs are (x, weight), expected (x, weight, bias); the engine reads input 2 '
                'without looking and aborts in protobuf. Fold BatchNorm into convolutions before exporting'
            )
            self._report(name, '', 'missing-bias', message)
        elif count < expected:
            message = f'has {count} inputs, expected {expected}; the engine reads past the end of the list'
            self._report(name, '', 'missing-input', message)

    def _initializer(self, node: str, name: str) -> np.ndarray:
        """Return an initializer as the parser takes it: FLOAT16 in raw_data of the right length, or empty."""
        tensor, problem = self._initializers.get(name), ''
        if tensor is None:
            rule, problem = 'initializer-missing', 'is not in the file'
        elif tensor.data_type != onnx.TensorProto.FLOAT16:
            kinds = {number: kind for kind, number in onnx.TensorProto.DataType.items()}
            kind = kinds.get(tensor.data_type, tensor.data_type)
            rule, problem = 'initializer-type', f'is {kind}, expected FLOAT16'
        elif len(tensor.raw_data) != (size := 2 * math.prod(tensor.dims)) or min(tensor.dims, default=0) < 0:
            elsewhere = ' (its values are in another field or file)' if not tensor.raw_data else ''
            rule = 'initializer-bytes'
            problem = f'has {len(tensor.raw_data)} bytes of raw_data{elsewhere}, expected {size} for '
            problem += f'{list(tensor.dims)}'
        elif not size:
            rule, problem = 'initializer-bytes', f'has the shape {list(tensor.dims)}'
        if problem:
            message = f'initializer {name!r} {problem}; the engine logs it and goes on with no values'
            self._report(node, name, rule, message)
            return np.zeros(0, np.float16)
        return np.frombuffer(tensor.raw_data, '<f2').reshape(tuple(tensor.dims))

    def _value(self, node: onnx.NodeProto, name: str, field: Field) -> Any:
        """Return the value of an attribute; report a missing one and one of another type."""
        value, attribute = _attribute(node, field)
        text = repr(value) if value != () else 'an empty list'
        if attribute is None:
            if field.severity:
                message = f'has no attribute {field.name!r}; the engine takes {text} in silence'
                self._report(name, field.name, 'attribute-missing', message, field.severity)
            return value
        kinds = {number: kind for kind, number in onnx.AttributeProto.AttributeType.items()}
        kind = kinds.get(attribute.type, str(attribute.type))
        if kind != field.kind:
            message = f'attribute {field.name!r} is {kind}, expected {field.kind}; the engine reads {text}'
            self._report(name, field.name, 'attribute-type', message)
        return value
