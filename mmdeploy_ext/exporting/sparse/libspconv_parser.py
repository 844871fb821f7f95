"""The nodes of a libspconv file as NVIDIA's engine reads them, with silent misreadings.

Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, libraries/3DSparseConvolution, the ONNX parser (its
behaviour, in own words). O, I channels of a convolution, k0, k1, k2 its kernel.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx

from mmdeploy_ext.base.violations import ERROR, WARNING, Violation
from mmdeploy_ext.graphs.io.types import type_name

GEOMETRY = {'kernel_size': 1, 'stride': 1, 'padding': 0, 'dilation': 1}
"""Attribute with a value per axis -> smallest value."""
ADDITIONS = ('Add', 'QuantAdd')


@dataclasses.dataclass(frozen=True)
class Field:
    """One attribute that the parser may read.

    Attributes:
        kind: ONNX type.
        severity: if it is missing; '' if optional.
    """

    name: str
    kind: str
    default: Any
    severity: str = ''


PRECISION_FIELDS = (Field('precision', 'STRING', ''), Field('output_precision', 'STRING', ''))
ADD_FIELDS = (
    Field('input0_dynamic_range', 'FLOAT', None),
    Field('input1_dynamic_range', 'FLOAT', None),
    *PRECISION_FIELDS,
)
READ = {
    'SparseConvolution': (
        *(Field(name, 'INTS', (), ERROR) for name in GEOMETRY),
        Field('subm', 'INT', 0, ERROR),
        Field('inverse', 'INT', 0),
        Field('activation', 'STRING', '', WARNING),
        Field('output_bound', 'INT', 150000, WARNING),
        Field('rulebook', 'STRING', None),
        Field('input_dynamic_range', 'FLOAT', None),
        Field('weight_dynamic_ranges', 'FLOATS', None),
        *PRECISION_FIELDS,
    ),
    'Add': ADD_FIELDS,
    'QuantAdd': ADD_FIELDS,
    'Relu': (),
    'ScatterDense': (
        Field('input_spatial_shape', 'INTS', (), ERROR),
        Field('output_shape', 'INTS', (), ERROR),
        Field('format', 'STRING', '', ERROR),
        Field('input_dynamic_range', 'FLOAT', None),
    ),
    'Transpose': (Field('dims', 'INTS', (), ERROR),),
    'Reshape': (Field('dims', 'INTS', (), ERROR),),
}
"""Operator -> attributes that the parser reads."""
UNREAD = (
    Field('ndim', 'INT', 3),
    Field('in_channels', 'INT', 0),
    Field('out_channels', 'INT', 0),
    Field('groups', 'INT', 1),
    Field('transposed', 'INT', 0),
    Field('output_padding', 'INTS', (0, 0, 0)),
    Field('input_spatial_shape', 'INTS', ()),
    Field('output_spatial_shape', 'INTS', ()),
    Field('input_shape', 'INTS', (1,)),
    Field('output_shape', 'INTS', (1,)),
)
"""Attributes of a convolution that exporters write and the parser ignores."""


@dataclasses.dataclass(frozen=True)
class ParsedNode:
    """One node as the engine holds it.

    Attributes:
        name: its name, or operator and index.
        inputs, output: tensors without initializers.
        values: read attributes, with defaults.
        unread: `UNREAD` of a convolution, with defaults.
        weight: (O, k0, k1, k2, I) float16, or empty.
        bias: (O,) float16, or empty.
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
        return self.op_type == 'SparseConvolution'

    @property
    def input_ranges(self) -> dict[str, float]:
        """Attribute -> amax of the inputs; 0 if missing."""
        return {name: value or 0.0 for name, value in self.values.items() if name.endswith('dynamic_range')}


def _attribute(node: onnx.NodeProto, field: Field) -> tuple[Any, onnx.AttributeProto | None]:
    """Read the protobuf field of the expected type, as the parser does, whatever the declared type."""
    attribute = next((attribute for attribute in node.attribute if attribute.name == field.name), None)
    if attribute is None:
        return field.default, None
    if field.kind == 'STRING':
        return attribute.s.decode('utf-8', 'replace'), attribute
    if field.kind in ('INT', 'FLOAT'):
        return (attribute.i if field.kind == 'INT' else attribute.f), attribute
    return tuple(attribute.ints if field.kind == 'INTS' else attribute.floats), attribute


class EngineParser:
    """Reads a graph as the engine does: `nodes` in file order, and `violations`.

    The parser ignores declared types, takes defaults in silence, reads inputs by position, and replaces
    unfitting initializers by empty arrays.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.violations: list[Violation] = []
        self.nodes: list[ParsedNode] = []
        # of several tensors of one name the engine takes the first
        self._initializers = {tensor.name: tensor for tensor in reversed(graph.initializer)}
        tensors = {entry.name for entry in graph.input}
        for index, node in enumerate(graph.node):
            name = node.name or f'{node.op_type} #{index}'
            if node.op_type in READ:
                self._parse(node, name, tensors)
            else:
                message = f'operator {node.op_type!r}; the engine knows {", ".join(READ)}, prints "Unsupport '
                self._report(name, '', 'unknown-operator', f'{message}operator" and builds nothing')
                tensors.update(node.output)

    def _report(self, node: str, attribute: str, rule: str, message: str, severity: str = ERROR) -> None:
        self.violations.append(Violation(node, attribute, rule, message, severity))

    def _parse(self, node: onnx.NodeProto, name: str, tensors: set[str]) -> None:
        is_convolution = node.op_type == 'SparseConvolution'
        self._count_inputs(node, name)
        inputs = tuple(node.input[: 2 if node.op_type in ADDITIONS else 1])
        for tensor in inputs:
            if tensor not in tensors:
                message = f'input {tensor!r} is neither a graph input nor the output of a node before it; '
                self._report(name, tensor, 'unknown-tensor', f'{message}the engine puts a null pointer there')
        output = node.output[0] if node.output else ''
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
        expected = {'SparseConvolution': 3, 'Add': 2, 'QuantAdd': 2}.get(node.op_type, 1)
        count = len(node.input)
        if expected == 3 and count == 2:
            message = (
                'has no bias: inputs are (x, weight), expected (x, weight, bias); the engine reads input 2 '
                'without looking and aborts in protobuf. Fold BatchNorm into convolutions before exporting'
            )
            self._report(name, '', 'missing-bias', message)
        elif count < expected:
            message = f'has {count} inputs, expected {expected}; the engine reads past the end of the list'
            self._report(name, '', 'missing-input', message)

    def _initializer(self, node: str, name: str) -> np.ndarray:
        tensor, problem = self._initializers.get(name), ''
        if tensor is None:
            rule, problem = 'initializer-missing', 'is not in the file'
        elif tensor.data_type != onnx.TensorProto.FLOAT16:
            rule, problem = 'initializer-type', f'is {type_name(tensor.data_type)}, expected FLOAT16'
        elif len(tensor.raw_data) != (size := 2 * math.prod(tensor.dims)) or not size:
            rule = 'initializer-bytes'
            problem = f'has {len(tensor.raw_data)} bytes of raw_data, expected {size} for {list(tensor.dims)}'
        if problem:
            message = f'initializer {name!r} {problem}; the engine logs it and continues without values'
            self._report(node, name, rule, message)
            return np.zeros(0, np.float16)
        return np.frombuffer(tensor.raw_data, '<f2').reshape(tuple(tensor.dims))

    def _value(self, node: onnx.NodeProto, name: str, field: Field) -> Any:
        value, attribute = _attribute(node, field)
        text = repr(value) if value != () else 'an empty list'
        if attribute is None:
            if field.severity:
                message = f'has no attribute {field.name!r}; the engine silently uses {text}'
                self._report(name, field.name, 'attribute-missing', message, field.severity)
            return value
        kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
        if kind != field.kind:
            message = f'attribute {field.name!r} is {kind}, expected {field.kind}; the engine reads {text}'
            self._report(name, field.name, 'attribute-type', message)
        return value
