"""Writer and reader of the libspconv dialect of NVIDIA's sparse convolution engine.

It is no valid ONNX: sparse operators are in the default domain, Reshape and Transpose have an attribute
`dims`, coordinates are no input, the opset's domain is 'ai.onnx'. `libspconv_contract.check` has the engine's
rules.

Source: ALGORITHM.md of the tests' golden files, sections 1 and 2.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from mmdeploy_ext.core.errors import ExportError, ModelFileError
from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.sparse import ir
from mmdeploy_ext.sparse.ir import ORDERS, TRIPLES, SparseConvolution, SparseGraph

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from mmdeploy_ext.sparse.ir import Add, Node

IR_VERSION = 8
"""As in NVIDIA's files."""
OPSET = ('ai.onnx', 11)
"""As in NVIDIA's files, although their operators are not in it."""
MODULES = 'mm2onnx.scn_modules'
"""Metadata key of JSON: node name -> module path."""
PRECISIONS = ('', 'fp16', 'int8')
NODE_CLASSES: dict[str, type[Node]] = {
    'SparseConvolution': SparseConvolution,
    'Add': ir.Add,
    'QuantAdd': ir.Add,
    'Relu': ir.Relu,
    'ScatterDense': ir.ScatterDense,
    'Transpose': ir.Transpose,
    'Reshape': ir.Reshape,
}
REQUIRED: Any = object()
"""Marks a required attribute."""


# ---- writing


def write(
    graph: SparseGraph, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a folded graph atomically as a libspconv file, see `to_onnx`."""
    model = to_onnx(graph, metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def to_onnx(graph: SparseGraph, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """A graph in the dialect; float32 weights are rounded to fp16.

    ExportError: an unfolded BatchNorm, a missing bias, a transposed or grouped convolution, or values beyond
    fp16.
    """
    nodes, initializers = [], []
    for node in graph.nodes:
        inputs = list(node.inputs)
        if isinstance(node, SparseConvolution):
            parameters = _parameters(node)
            inputs += [tensor.name for tensor in parameters]
            initializers += parameters
        attributes = _attributes(node, graph.order)
        nodes.append(helper.make_node(node.op_type, inputs, [node.output], name=node.name, **attributes))
    proto = helper.make_graph(
        nodes,
        'scn',
        [helper.make_tensor_value_info('0', TensorProto.FLOAT16, [graph.input_rows, graph.in_channels])],
        [helper.make_tensor_value_info(graph.output, TensorProto.FLOAT16, list(graph.output_shape))],
        initializers,
    )
    model = helper.make_model(
        proto,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid(*OPSET)],
        producer_name='pytorch',
        producer_version='1.9',
    )
    modules = json.dumps({node.name: node.module for node in graph.nodes})
    helper.set_model_props(model, {**(metadata or {}), MODULES: modules})
    return model


def _attributes(node: Node, order: str) -> dict[str, Any]:
    if isinstance(node, SparseConvolution):
        return _convolution_attributes(node)
    if isinstance(node, ir.Add):
        names = () if node.input_range is None else ('input0_dynamic_range', 'input1_dynamic_range')
        return {name: float(node.input_range) for name in names} | _precision_attributes(node)
    if isinstance(node, ir.Relu):
        return {}
    if isinstance(node, ir.ScatterDense):
        shapes = dict(input_spatial_shape=list(node.spatial_shape), output_shape=list(node.output_shape))
        return dict(shapes, format=order)
    if isinstance(node, ir.Transpose | ir.Reshape):
        return dict(dims=list(node.dims))
    raise ExportError(
        f'{node.name} ({node.module}): {node.op_type} has no counterpart in the dialect; fold the graph first'
    )


def _convolution_attributes(node: SparseConvolution) -> dict[str, Any]:
    if node.transposed or node.groups != 1:
        kind = 'is transposed' if node.transposed else f'has {node.groups} groups'
        raise ExportError(
            f'{node.name} ({node.module}): {kind}, which the engine never reads: it computes an ordinary '
            f'convolution of one group'
        )
    attributes: dict[str, Any] = {name: list(getattr(node, name)) for name in TRIPLES}
    attributes |= dict(
        ndim=3,
        in_channels=node.in_channels,
        out_channels=node.out_channels,
        groups=node.groups,
        output_bound=node.output_bound,
        transposed=int(node.transposed),
        inverse=int(node.inverse),
        subm=int(node.subm),
        input_shape=[node.input_rows, node.in_channels],
        output_shape=[node.output_rows, node.out_channels],
        activation=node.activation,
    )
    if node.rulebook is not None:
        attributes['rulebook'] = node.rulebook
    if node.input_range is not None:
        attributes['input_dynamic_range'] = float(node.input_range)
    if node.weight_ranges is not None:
        attributes['weight_dynamic_ranges'] = [float(value) for value in node.weight_ranges]
    return attributes | _precision_attributes(node)


def _precision_attributes(node: SparseConvolution | Add) -> dict[str, str]:
    attributes = dict(precision=node.precision, output_precision=node.output_precision)
    return {name: value for name, value in attributes.items() if value}


def _parameters(node: SparseConvolution) -> list[TensorProto]:
    if node.bias is None:
        raise ExportError(
            f'{node.name} ({node.module}): has no bias, which the engine reads unasked; fold the graph first'
        )
    number = node.name.removeprefix('conv')
    tensors = []
    for name, array in ((f'spconv{number}.weight', node.weight), (f'spconv{number}.bias', node.bias)):
        with np.errstate(over='ignore'):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise ExportError(
                f'{name} ({node.module}): its largest magnitude is {np.abs(array).max():g}, beyond fp16 '
                f'(65504); the weights are damaged or not trained in this range'
            )
        tensors.append(helper.make_tensor(name, TensorProto.FLOAT16, half.shape, half.tobytes(), raw=True))
    return tensors


# ---- reading


def read(path: str | os.PathLike[str]) -> SparseGraph:
    """Read a libspconv file; equal to the written graph with fp16 weights and float32 ranges.

    ModelFileError: missing, damaged or of another kind.
    """
    return from_onnx(files.read(path), path)


def from_onnx(model: onnx.ModelProto, path: object = 'the file') -> SparseGraph:
    """Graph of a model in the dialect, with module paths from its metadata if any.

    ModelFileError: an unknown, malformed or unconnected node; it names node and attribute.
    """
    reader = _Reader(model, path)
    nodes = tuple(reader.node(node) for node in model.graph.node)
    first = next((node for node in nodes if isinstance(node, SparseConvolution)), None)
    if first is None or reader.order is None:
        raise ModelFileError(f'{path}: has no SparseConvolution or no ScatterDense; is it a libspconv file?')
    rows, channels = reader.shape(model.graph.input, 'input', 2)
    output_shape = reader.shape(model.graph.output, 'output', None)
    output = model.graph.output[0].name
    reader.check_tensor('the output', output)
    grid = first.input_spatial_shape
    return SparseGraph(nodes, reader.order, grid, channels, output, output_shape, input_rows=rows)


class _Reader:
    """One file while it is read; `order` comes from its ScatterDense nodes."""

    def __init__(self, model: onnx.ModelProto, path: object) -> None:
        self.path = path
        self.order: str | None = None
        # of several of one name the engine takes the first
        self._initializers = {tensor.name: tensor for tensor in reversed(model.graph.initializer)}
        self._tensors = {info.name for info in model.graph.input}
        self._names: set[str] = set()
        text = next((entry.value for entry in model.metadata_props if entry.key == MODULES), '{}')
        try:
            self._modules = json.loads(text)
        except ValueError as error:  # not JSON, or not UTF-8
            raise self.error(MODULES, f'is not JSON ({error})') from error
        if not isinstance(self._modules, dict):
            raise self.error(MODULES, f'is {self._modules!r}, expected node names with module paths')

    def error(self, place: str, problem: str) -> ModelFileError:
        return ModelFileError(f'{self.path}: {place}: {problem}; the file is damaged or of another kind')

    def check_tensor(self, consumer: str, name: str) -> None:
        if name not in self._tensors:
            raise self.error(consumer, f'reads tensor {name!r}, which no node before it gives')

    def shape(self, infos: Any, side: str, rank: int | None) -> tuple[int, ...]:
        if len(infos) != 1:
            raise self.error(f'graph {side}', f'there are {len(infos)}, expected 1')
        sizes = tuple(dim.dim_value for dim in infos[0].type.tensor_type.shape.dim)
        if not sizes or min(sizes) < 1 or (rank and len(sizes) != rank):
            raise self.error(f'graph {side} {infos[0].name!r}', f'has the shape {list(sizes)}')
        return sizes

    def node(self, node: onnx.NodeProto) -> Node:
        node_class, name = NODE_CLASSES.get(node.op_type), node.name or node.op_type
        if node_class is None:
            operators = ', '.join(NODE_CLASSES)
            raise self.error(name, f'has op_type {node.op_type!r}, expected one of {operators}')
        if not node.name or node.name in self._names:  # tables and ranges belong to names
            problem = 'is the name of two nodes' if node.name else 'a node has no name'
            raise self.error(name, f'{problem}; expected a name for each node')
        self._names.add(node.name)
        count = 2 if node_class is ir.Add else 1
        if len(node.output) != 1 or len(node.input) < count:
            raise self.error(
                name, f'has {len(node.input)} inputs and {len(node.output)} outputs, expected {count} and 1'
            )
        for tensor in node.input[:count]:
            self.check_tensor(name, tensor)
        if node.output[0] in self._tensors:
            raise self.error(name, f'gives tensor {node.output[0]!r} a second time')
        self._tensors.add(node.output[0])
        module = str(self._modules.get(node.name, ''))
        return node_class(
            node.name, module, tuple(node.input[:count]), node.output[0], **self._fields(node, node_class)
        )

    def _fields(self, node: onnx.NodeProto, node_class: type[Node]) -> dict[str, Any]:
        if node_class is SparseConvolution:
            return self._convolution(node)
        if node_class is ir.Add:
            first, second = (
                self._attribute(node, f'input{side}_dynamic_range', 'FLOAT', None) for side in (0, 1)
            )
            if first != second:
                raise self.error(node.name, f'has the input ranges {first} and {second}, expected equal ones')
            return dict(self._precisions(node), input_range=first)
        if node_class is ir.ScatterDense:
            order = self._attribute(node, 'format', 'STRING')
            if order not in ORDERS or self.order not in (None, order):
                expected = self.order or ' or '.join(ORDERS)
                raise self.error(node.name, f'has the format {order!r}, expected {expected}')
            self.order = order
            shape = self._attribute(node, 'output_shape', 'INTS', length=5)
            grid = self._attribute(node, 'input_spatial_shape', 'INTS', length=3)
            return dict(spatial_shape=grid, output_shape=shape)
        if node_class is ir.Relu:
            return {}
        dims = self._attribute(node, 'dims', 'INTS')
        if node_class is ir.Transpose and sorted(dims) != list(range(len(dims))):
            raise self.error(node.name, f'has dims {list(dims)}, expected a permutation')
        return dict(dims=dims)

    def _convolution(self, node: onnx.NodeProto) -> dict[str, Any]:
        fields: dict[str, Any] = {name: self._attribute(node, name, 'INTS', length=3) for name in TRIPLES}
        for name in ('subm', 'inverse', 'transposed'):
            fields[name] = bool(self._attribute(node, name, 'INT'))
        fields |= self._precisions(node)
        out_channels, in_channels = (
            self._attribute(node, name, 'INT') for name in ('out_channels', 'in_channels')
        )
        if len(node.input) < 2:
            raise self.error(node.name, 'has no weight')
        weight_shape = (out_channels, *fields['kernel_size'], in_channels)
        weight = self._initializer(node, node.input[1], weight_shape)
        bias = self._initializer(node, node.input[2], (out_channels,)) if len(node.input) > 2 else None
        ranges = self._attribute(node, 'weight_dynamic_ranges', 'FLOATS', None)
        return dict(
            fields,
            weight=weight,
            bias=bias,
            input_rows=self._attribute(node, 'input_shape', 'INTS', length=2)[0],
            output_rows=self._attribute(node, 'output_shape', 'INTS', length=2)[0],
            output_bound=self._attribute(node, 'output_bound', 'INT'),
            groups=self._attribute(node, 'groups', 'INT'),
            rulebook=self._attribute(node, 'rulebook', 'STRING', None),
            activation=self._attribute(node, 'activation', 'STRING'),
            input_range=self._attribute(node, 'input_dynamic_range', 'FLOAT', None),
            weight_ranges=None if ranges is None else np.array(ranges, np.float32),
        )

    def _precisions(self, node: onnx.NodeProto) -> dict[str, str]:
        names = ('precision', 'output_precision')
        fields = {name: self._attribute(node, name, 'STRING', '') for name in names}
        for name, value in fields.items():
            if value not in PRECISIONS:
                raise self.error(node.name, f'has {name}={value!r}, expected fp16 or int8')
        return fields

    def _initializer(self, node: onnx.NodeProto, name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = self._initializers.get(name)
        if tensor is None:
            raise self.error(node.name, f'initializer {name!r} is missing')
        if tensor.data_type != TensorProto.FLOAT16 or tuple(tensor.dims) != shape or min(shape) < 0:
            got = f'{TensorProto.DataType.Name(tensor.data_type)} {list(tensor.dims)}'
            raise self.error(node.name, f'initializer {name!r} is {got}, expected FLOAT16 {list(shape)}')
        got, size = len(tensor.raw_data), 2 * math.prod(shape)
        if got != size:
            raise self.error(node.name, f'initializer {name!r} has {got} bytes, expected {size}')
        return np.frombuffer(tensor.raw_data, np.float16).reshape(shape).copy()

    def _attribute(
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


# ---- comparing


def to_node_list(model: onnx.ModelProto) -> dict[str, Any]:
    """A file as plain data, as in the reference exporter's stored node lists (golden INDEX.md).

    Keys: `meta`, `inputs`, `outputs`, `nodes`, `initializers` (with hashes); no `metadata_props`.
    """
    graph = model.graph
    properties = ['ir_version', 'producer_name', 'producer_version', 'domain', 'model_version', 'doc_string']
    return dict(
        meta=dict(
            {name: getattr(model, name) for name in properties},
            opset_import=[dict(domain=opset.domain, version=opset.version) for opset in model.opset_import],
            graph_name=graph.name,
            n_nodes=len(graph.node),
            n_initializers=len(graph.initializer),
            n_value_info=len(graph.value_info),
        ),
        inputs=[_listed_tensor(info) for info in graph.input],
        outputs=[_listed_tensor(info) for info in graph.output],
        nodes=[_listed_node(node) for node in graph.node],
        initializers=[
            dict(
                name=tensor.name,
                dtype=TensorProto.DataType.Name(tensor.data_type),
                dims=list(tensor.dims),
                storage='raw_data' if tensor.HasField('raw_data') else 'typed',
                bytes=len(tensor.raw_data),
                sha256=hashlib.sha256(tensor.raw_data).hexdigest(),
            )
            for tensor in graph.initializer
        ],
    )


def _listed_tensor(info: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor_type = info.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in tensor_type.shape.dim]
    return dict(name=info.name, dtype=TensorProto.DataType.Name(tensor_type.elem_type), shape=shape)


def _listed_node(node: onnx.NodeProto) -> dict[str, Any]:
    attributes = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode(errors='backslashreplace')
        elif hasattr(value, 'SerializeToString'):  # a graph or tensor, which no file of this dialect has
            value = value.SerializeToString(deterministic=True).hex()
        elif not isinstance(value, int | float):
            value = [str(item) if hasattr(item, 'SerializeToString') else item for item in value]
        kind = AttributeProto.AttributeType.Name(attribute.type)
        attributes[attribute.name] = dict(type=kind, value=value)
    return dict(
        op_type=node.op_type,
        name=node.name,
        domain=node.domain,
        inputs=list(node.input),
        outputs=list(node.output),
        attributes=attributes,
    )
