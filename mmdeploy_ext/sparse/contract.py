"""The contract of the libspconv dialect: what NVIDIA's engine would do with a file, without the engine.

`check` reads a file as the engine's parser does (`Reader`), then looks for what makes it run and be wrong:
values that cannot be meant, another order of coordinates than it states (`contract_rules`), and nodes that do
not fit together (`contract_flow`).

What it cannot tell: whether the engine's closed kernels compute what their attributes say, how they round,
and whether the numbers in the file are the right ones; for these the numeric proof compares with spconv.

The dialect is no valid ONNX (`SparseConvolution` in the default domain, `dims` as an attribute of Reshape),
so `onnx.checker` and shape inference do not apply. Needs onnx and numpy only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mmdeploy_ext.graph.io.checks import is_sparse
from mmdeploy_ext.graph.io.files import read as load_model
from mmdeploy_ext.sparse.contract_fields import ERROR, READ, WARNING, WRITTEN, Field, Layer, Violation
from mmdeploy_ext.sparse.contract_flow import Walk, graph_rules, type_rules
from mmdeploy_ext.sparse.contract_rules import node_rules, order_rules
from mmdeploy_ext.sparse.ir import ORDERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ['ERROR', 'WARNING', 'Violation', 'check', 'errors', 'is_sparse', 'load_model', 'order_of_name']
STORED = {'INT': 'i', 'FLOAT': 'f', 'STRING': 's', 'INTS': 'ints', 'FLOATS': 'floats'}
"""Type of an attribute -> the field of protobuf that holds it."""
INPUTS = {'SparseConvolution': 3, 'Add': 2, 'QuantAdd': 2}
"""Inputs that the parser takes by position; 1 elsewhere."""


def order_of_name(name: str | os.PathLike[str]) -> str:
    """Return the coordinate order that a file's name says ('lidar.backbone.xyz.onnx'), '' when none."""
    words = Path(os.fspath(name)).name.lower().split('.')
    return next((order for order in ORDERS if order in words), '')


def check(
    source: str | os.PathLike[str] | onnx.ModelProto, *, max_voxels: int | None = None, name: str = ''
) -> list[Violation]:
    """Return everything in a file that the engine would not do as it was meant.

    Args:
        source: file or model.
        max_voxels: most voxels of one sweep; an output bound below it is an error. None: the 160,000 of
            the published test configs, as a warning.
        name: file name for a model that has none, e.g. 'lidar.backbone.xyz.onnx'.

    Raises:
        ModelFileError: missing, empty or corrupt file.
    """
    if not isinstance(source, onnx.ModelProto):
        name = name or os.fspath(source)
        source = load_model(source)
    if not is_sparse(source):
        message = (
            'there is no SparseConvolution: this is not a file of the libspconv dialect (a portable or dense '
            'ONNX?); the engine refuses it'
        )
        return [Violation('', '', 'other-dialect', message)]
    graph = source.graph
    reader = Reader(graph)
    found = [*reader.violations, *attributes_twice(graph)]
    for layer in reader.layers:
        found.extend(node_rules(layer))
    found.extend(type_rules(graph))
    found.extend(graph_rules(graph, reader.layers))
    found.extend(Walk(graph, reader.layers, max_voxels).violations)
    found.extend(order_rules(reader.layers, order_of_name(name)))
    places = {layer.name: index for index, layer in enumerate(reader.layers)}
    return sorted(found, key=lambda entry: (places.get(entry.node, -1), entry.severity))


def errors(violations: Sequence[Violation]) -> list[Violation]:
    """Return those of severity 'error'."""
    return [entry for entry in violations if entry.severity == ERROR]


def read_attribute(node: onnx.NodeProto, field: Field) -> tuple[Any, onnx.AttributeProto | None]:
    """Return the value that the parser reads and the attribute that it reads it from, if there is one."""
    attribute = next((one for one in node.attribute if one.name == field.name), None)
    if attribute is None:
        return field.default, None
    value = getattr(attribute, STORED[field.kind])
    if field.kind == 'STRING':
        return value.decode('utf-8', 'replace'), attribute
    return tuple(value) if field.kind.endswith('S') else value, attribute


def text(value: str | bytes) -> str:
    """Return a name; of a damaged file protobuf gives bytes where they are no UTF-8."""
    return value if isinstance(value, str) else value.decode('utf-8', 'replace')


def node_name(node: onnx.NodeProto, index: int) -> str:
    """Return a node's name, or something that finds it in a listing."""
    return text(node.name) or f'{text(node.op_type) or "node"} #{index}'


class Reader:
    """Reads a graph as the engine does: `layers` in file order, `violations` that it silently accepts.

    The parser reads attributes by field, never looks at their declared type, takes defaults in silence, reads
    inputs by position without counting them, and goes on with an empty array where an initializer does not
    suit it. Here every such step leaves a `Violation` that says what the engine would do.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
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
