"""What the libspconv engine's parser holds in memory after it has read a file: a port of its rules.

The parser reads attributes by field, never looks at their declared type, takes defaults in silence, reads
inputs by position without counting them, and goes on with an empty array where an initializer does not suit
it. Here every such step leaves a `Violation` that says what the engine would do.

Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, libraries/3DSparseConvolution, the ONNX parser (its
behaviour, in own words). Needs onnx and numpy only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mmdeploy_ext.sparse.contract_fields import (
    ERROR,
    INPUTS,
    READ,
    WARNING,
    WRITTEN,
    Field,
    Layer,
    Violation,
    node_name,
    read_attribute,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reader:
    """Reads a graph as the engine does.

    Attributes:
        layers: what it holds, in file order.
        violations: what it silently accepted.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        """Read it."""
        self.graph = graph
        self.violations: list[Violation] = []
        self.layers: list[Layer] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        for tensor in graph.initializer:
            if tensor.name in self._initializers:
                message = f'initializer {tensor.name!r} is there twice; the engine takes the first'
                self._add('', tensor.name, 'initializer-twice', message, WARNING)
            self._initializers.setdefault(tensor.name, tensor)
        known = {entry.name for entry in graph.input}
        for index, node in enumerate(graph.node):
            self._read(node, index, known)

    def _add(self, node: str, attribute: str, rule: str, message: str, severity: str = ERROR) -> None:
        self.violations.append(Violation(node, attribute, rule, message, severity))

    def _read(self, node: onnx.NodeProto, index: int, known: set[str]) -> None:
        name = node_name(node, index)
        if node.op_type not in READ:
            message = f'operator {node.op_type!r}; the engine knows {", ".join(READ)}, prints "Unsupport '
            self._add(name, '', 'unknown-operator', f'{message}operator" and builds nothing')
            known.update(node.output)
            return
        count = INPUTS.get(node.op_type, 1)
        self._count_inputs(node, name, count)
        tensors = tuple(map(text, node.input[:1] if count == 3 else node.input[:count]))
        for tensor in tensors:
            if tensor not in known:
                message = f'input {tensor!r} is neither a graph input nor the output of a node before it; '
                self._add(name, tensor, 'unknown-tensor', f'{message}the engine puts a null pointer there')
        if not node.output:
            self._add(name, '', 'no-output', 'has no output; the engine reads past the end of the list')
        output = text(node.output[0]) if node.output else ''
        if output in known and output:
            message = f'output {output!r} has been given before; nodes after this one take it from here'
            self._add(name, output, 'output-twice', message)
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
        got = len(node.input)
        if got > count:
            message = f'has {got} inputs, the engine takes the first {count}'
            self._add(name, '', 'extra-input', message, WARNING)
        elif count == 3 and got == 2:
            message = (
                'has no bias: inputs are (x, weight), expected (x, weight, bias); the engine reads input 2 '
                'without looking and aborts in protobuf. Fold BatchNorm into convolutions before exporting'
            )
            self._add(name, '', 'missing-bias', message)
        elif got < count:
            message = f'has {got} inputs, expected {count}; the engine reads past the end of the list'
            self._add(name, '', 'missing-input', message)

    def _initializer(self, node: str, name: str) -> np.ndarray:
        """Return an initializer as the parser takes it: FLOAT16 in raw_data of the right length, or empty."""
        tensor, rule, problem = self._initializers.get(name), '', ''
        if tensor is None:
            rule, problem = 'initializer-missing', 'is not in the file'
        elif tensor.data_type != onnx.TensorProto.FLOAT16:
            kinds = {number: kind for kind, number in onnx.TensorProto.DataType.items()}
            kind = kinds.get(tensor.data_type, tensor.data_type)
            rule, problem = 'initializer-type', f'is {kind}, expected FLOAT16'
        elif len(tensor.raw_data) != (size := 2 * int(np.prod(tensor.dims, dtype=np.int64))):
            elsewhere = ' (its values are in another field or file)' if not tensor.raw_data else ''
            got = f'has {len(tensor.raw_data)} bytes of raw_data{elsewhere}'
            rule, problem = 'initializer-bytes', f'{got}, expected {size} for {list(tensor.dims)}'
        if problem:
            message = f'initializer {name!r} {problem}; the engine logs it and goes on with no values'
            self._add(node, name, rule, message)
            return np.zeros(0, np.float16)
        return np.frombuffer(tensor.raw_data, '<f2').reshape(tuple(tensor.dims))

    def _value(self, node: onnx.NodeProto, name: str, field: Field) -> Any:
        value, attribute = read_attribute(node, field)
        shown = repr(value) if value != () else 'an empty list'
        if attribute is None:
            if field.needed:
                message = f'has no attribute {field.name!r}; the engine takes {shown} in silence'
                self._add(name, field.name, 'attribute-missing', message, field.needed)
            return value
        kinds = {number: kind for kind, number in onnx.AttributeProto.AttributeType.items()}
        got = kinds.get(attribute.type, str(attribute.type))
        if got != field.kind:
            message = f'attribute {field.name!r} is {got}, expected {field.kind}; the engine reads {shown}'
            self._add(name, field.name, 'attribute-type', message)
        return value


def attributes_twice(graph: onnx.GraphProto) -> Iterator[Violation]:
    """Report attributes that a node has twice: the engine takes the first."""
    for index, node in enumerate(graph.node):
        names = [attribute.name for attribute in node.attribute]
        for name in sorted({name for name in names if names.count(name) > 1}):
            message = f'attribute {name!r} is there {names.count(name)} times; the engine takes the first'
            yield Violation(node_name(node, index), name, 'attribute-twice', message, WARNING)
