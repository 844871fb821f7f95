"""Reader of the libspconv dialect: a file back to the sparse graph. `libspconv.read` is its public name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, helper

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.sparse import ir
from mmdeploy_ext.sparse.ir import ORDERS, TRIPLES, SparseConvolution, SparseGraph

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from mmdeploy_ext.sparse.ir import Node

MODULES = 'mm2onnx.scn_modules'
PRECISIONS = ('', 'fp16', 'int8')
REQUIRED: Any = object()


def load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read a file's protobuf without judging it; a missing or damaged one is a ModelFileError."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ModelFileError(f'{path}: cannot be read ({error.strerror})') from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelFileError(f'{path}: is not an ONNX file, or was cut short; export it again') from error
    if not all(isinstance(text, str) for text in _texts(model)):
        raise ModelFileError(f'{path}: has names that are no text; the file is damaged, export it again')
    if not model.graph.node:
        raise ModelFileError(f'{path}: has no nodes; expected a libspconv file')
    return model


def _texts(model: onnx.ModelProto) -> Iterator[object]:
    """Yield all names: protobuf gives bytes where a string is damaged."""
    graph = model.graph
    for item in (*graph.initializer, *graph.input, *graph.output):
        yield item.name
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    for node in graph.node:
        yield from (node.name, node.op_type, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def from_onnx(model: onnx.ModelProto, path: object = 'the file') -> SparseGraph:
    """Return the graph of a libspconv file; module paths come from its metadata, where it has them.

    This asks for everything that the dialect writes, unlike the engine, whose own rules `contract.check`
    knows.

    Raises:
        ModelFileError: an unknown operation, a missing or mistyped attribute, a tensor that no node before
            gives, an initializer that is missing or damaged; node and attribute are named.
    """
    reader = _Reader(model, path)
    nodes = tuple(reader.node(node) for node in model.graph.node)
    first = next((node for node in nodes if isinstance(node, SparseConvolution)), None)
    if first is None or reader.order is None:
        raise ModelFileError(f'{path}: has no SparseConvolution or no ScatterDense; is it a libspconv file?')
    rows, channels = reader.shape(model.graph.input, 'input', 2)
    output_shape = reader.shape(model.graph.output, 'output', None)
    output = model.graph.output[0].name
    reader.known_tensor('the output', output)
    grid = first.input_spatial_shape
    return SparseGraph(nodes, reader.order, grid, channels, output, output_shape, input_rows=rows)


class _Reader:
    """One file while it is read."""

    def __init__(self, model: onnx.ModelProto, path: object) -> None:
        self.path = path
        self.order: str | None = None
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._known = {info.name for info in model.graph.input}
        self._modules = self._read_modules(model)

    def _read_modules(self, model: onnx.ModelProto) -> dict[str, str]:
        text = next((entry.value for entry in model.metadata_props if entry.key == MODULES), '{}')
        try:
            modules = json.loads(text)
        except json.JSONDecodeError as error:
            raise self.error(MODULES, f'is not JSON ({error})') from error
        if not isinstance(modules, dict):
            raise self.error(MODULES, f'is {modules!r}, expected node names with module paths')
        return modules

    def error(self, where: str, problem: str) -> ModelFileError:
        return ModelFileError(f'{self.path}: {where}: {problem}; the file is damaged or of another kind')

    def known_tensor(self, where: str, name: str) -> None:
        if name not in self._known:
            raise self.error(where, f'reads tensor {name!r}, which no node before it gives')

    def shape(self, infos: Any, what: str, rank: int | None) -> tuple[int, ...]:
        """Return the declared shape of the graph's only input or output."""
        if len(infos) != 1:
            raise self.error(f'graph {what}', f'there are {len(infos)}, expected 1')
        sizes = tuple(dim.dim_value for dim in infos[0].type.tensor_type.shape.dim)
        if not sizes or min(sizes) < 1 or (rank and len(sizes) != rank):
            raise self.error(f'graph {what} {infos[0].name!r}', f'has the shape {list(sizes)}')
        return sizes

    def node(self, node: onnx.NodeProto) -> Node:
        kind = CLASSES.get(node.op_type)
        where, inputs = node.name or node.op_type, 1 + (kind is ir.Add)
        if kind is None:
            raise self.error(where, f'has op_type {node.op_type!r}, expected one of {", ".join(CLASSES)}')
        if len(node.output) != 1 or len(node.input) < inputs:
            raise self.error(
                where, f'has {len(node.input)} inputs and {len(node.output)} outputs, expected {inputs} and 1'
            )
        for name in node.input[:inputs]:
            self.known_tensor(where, name)
        if node.output[0] in self._known:
            raise self.error(where, f'gives tensor {node.output[0]!r} a second time')
        self._known.add(node.output[0])
        module = str(self._modules.get(node.name, ''))
        common = (node.name, module, tuple(node.input[:inputs]), node.output[0])
        return kind(*common, **getattr(self, f'_{node.op_type.lower()}')(node))

    def _sparseconvolution(self, node: onnx.NodeProto) -> dict[str, Any]:
        fields: dict[str, Any] = {name: self._triple(node, name) for name in TRIPLES}
        fields |= {name: bool(self._get(node, name, 'INT')) for name in ('subm', 'inverse', 'transposed')}
        fields |= self._precision(node) | self._kernel(node, fields['kernel_size'])
        ranges = self._get(node, 'weight_dynamic_ranges', 'FLOATS', None)
        return dict(
            fields,
            input_rows=self._get(node, 'input_shape', 'INTS', length=2)[0],
            output_rows=self._get(node, 'output_shape', 'INTS', length=2)[0],
            output_bound=self._get(node, 'output_bound', 'INT'),
            groups=self._get(node, 'groups', 'INT'),
            rulebook=self._get(node, 'rulebook', 'STRING', None),
            activation=self._get(node, 'activation', 'STRING'),
            input_range=self._get(node, 'input_dynamic_range', 'FLOAT', None),
            weight_ranges=None if ranges is None else np.array(ranges, np.float32),
        )

    def _kernel(self, node: onnx.NodeProto, kernel_size: tuple[int, ...]) -> dict[str, np.ndarray | None]:
        channels = [self._get(node, name, 'INT') for name in ('out_channels', 'in_channels')]
        if len(node.input) < 2:
            raise self.error(node.name, 'has no weight')
        weight = self._initializer(node, node.input[1], (channels[0], *kernel_size, channels[1]))
        bias = self._initializer(node, node.input[2], (channels[0],)) if len(node.input) > 2 else None
        return dict(weight=weight, bias=bias)

    def _initializer(self, node: onnx.NodeProto, name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = self._initializers.get(name)
        if tensor is None:
            raise self.error(node.name, f'initializer {name!r} is missing')
        if tensor.data_type != TensorProto.FLOAT16 or tuple(tensor.dims) != shape:
            got = f'{TensorProto.DataType.Name(tensor.data_type)} {list(tensor.dims)}'
            raise self.error(node.name, f'initializer {name!r} is {got}, expected FLOAT16 {list(shape)}')
        got, size = len(tensor.raw_data), 2 * math.prod(shape)
        if got != size:
            raise self.error(node.name, f'initializer {name!r} has {got} bytes, expected {size}')
        return np.frombuffer(tensor.raw_data, np.float16).reshape(shape).copy()

    def _add(self, node: onnx.NodeProto) -> dict[str, Any]:
        first, second = (self._get(node, f'input{side}_dynamic_range', 'FLOAT', None) for side in (0, 1))
        if first != second:
            raise self.error(node.name, f'has the input ranges {first} and {second}, expected equal ones')
        return dict(self._precision(node), input_range=first)

    _quantadd = _add

    def _relu(self, node: onnx.NodeProto) -> dict[str, Any]:
        return {}

    def _scatterdense(self, node: onnx.NodeProto) -> dict[str, Any]:
        order = self._get(node, 'format', 'STRING')
        if order not in ORDERS or self.order not in (None, order):
            expected = self.order or ' or '.join(ORDERS)
            raise self.error(node.name, f'has the format {order!r}, expected {expected}')
        self.order = order
        shape = self._get(node, 'output_shape', 'INTS', length=5)
        return dict(spatial_shape=self._triple(node, 'input_spatial_shape'), output_shape=shape)

    def _transpose(self, node: onnx.NodeProto) -> dict[str, Any]:
        dims = self._get(node, 'dims', 'INTS')
        if sorted(dims) != list(range(len(dims))):
            raise self.error(node.name, f'has dims {list(dims)}, expected a permutation')
        return dict(dims=dims)

    def _reshape(self, node: onnx.NodeProto) -> dict[str, Any]:
        return dict(dims=self._get(node, 'dims', 'INTS'))

    def _precision(self, node: onnx.NodeProto) -> dict[str, str]:
        fields = {name: self._get(node, name, 'STRING', '') for name in ('precision', 'output_precision')}
        for name, value in fields.items():
            if value not in PRECISIONS:
                raise self.error(node.name, f'has {name}={value!r}, expected fp16 or int8')
        return fields

    def _triple(self, node: onnx.NodeProto, name: str) -> tuple[int, ...]:
        return self._get(node, name, 'INTS', length=3)

    def _get(
        self, node: onnx.NodeProto, name: str, kind: str, default: Any = REQUIRED, length: int | None = None
    ) -> Any:
        attribute = next((item for item in node.attribute if item.name == name), None)
        if attribute is None:
            if default is REQUIRED:
                raise self.error(node.name, f'attribute {name!r} is missing, expected {kind}')
            return default
        if attribute.type != AttributeProto.AttributeType.Value(kind):
            got = AttributeProto.AttributeType.Name(attribute.type)
            raise self.error(node.name, f'attribute {name!r} is {got}, expected {kind}')
        value = helper.get_attribute_value(attribute)
        if kind == 'STRING':
            return value.decode(errors='replace')
        if kind not in ('INTS', 'FLOATS'):
            return value
        if length is not None and len(value) != length:
            raise self.error(node.name, f'attribute {name!r} has {len(value)} values, expected {length}')
        return tuple(value)


CLASSES: dict[str, type[Node]] = {
    'SparseConvolution': SparseConvolution,
    'Add': ir.Add,
    'QuantAdd': ir.Add,
    'Relu': ir.Relu,
    'ScatterDense': ir.ScatterDense,
    'Transpose': ir.Transpose,
    'Reshape': ir.Reshape,
}
