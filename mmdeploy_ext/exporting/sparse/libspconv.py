"""Writer and reader of the libspconv dialect of NVIDIA's sparse convolution engine.

It is no valid ONNX: sparse operators are in the default domain, Reshape and Transpose have an attribute
`dims`, coordinates are no input, the opset's domain is 'ai.onnx'. Source: ALGORITHM.md of the tests' golden
files, sections 1 and 2.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from mmdeploy_ext.base.errors import ExportError, ModelFileError
from mmdeploy_ext.base.files import atomic_path
from mmdeploy_ext.base.violations import ERROR, WARNING, Violation, errors
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.io.types import type_name
from mmdeploy_ext.runtime.sparse import ir
from mmdeploy_ext.runtime.sparse.ir import ORDERS, TRIPLES, Add, Node, SparseConvolution, SparseGraph
from mmdeploy_ext.spec.digest import sealed
from mmdeploy_ext.spec.metadata import PREFIX, entries_of, read_entry

# The nodes of a libspconv file as NVIDIA's engine reads them, with silent misreadings.
#
# Source: NVIDIA-AI-IOT/Lidar_AI_Solution 787ad95, libraries/3DSparseConvolution, the ONNX parser (its
# behaviour, in own words). O, I channels of a convolution, k0, k1, k2 its kernel.


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


# Nodes, inputs and initializers of an ONNX graph in the making.


class NodeWriter:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self._shared: set[str] = set()

    def is_first_use(self, name: str) -> bool:
        """Whether a shared tensor has still to be written: True at the first call with a name."""
        is_new = name not in self._shared
        self._shared.add(name)
        return is_new

    def op(
        self, op_type: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: object
    ) -> str:
        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add an initializer, shared if equal; ValueError: the name has other values."""
        tensor = numpy_helper.from_array(np.asarray(values, order='C'), name)
        earlier = self.initializers.setdefault(name, tensor)
        if earlier is not tensor and earlier != tensor:
            raise ValueError(f'{name}: is an initializer with other values')
        return name

    def integers(self, *values: int) -> str:
        """Name of a shared int64 initializer (n,)."""
        name = 'shape.' + '_'.join(str(value) for value in values)
        return self.constant(name, np.array(values, np.int64))

    def input(self, name: str, elem_type: int, *axes: int | str) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, elem_type, list(axes)))
        return name

    def split(self, tensor: str, lengths: str, count: int) -> None:
        """Cut a tensor along axis 0 into TENSOR.0, ...; `lengths` names a tensor (pieces,) int64."""
        self.op('Split', [tensor, lengths], [f'{tensor}.{piece}' for piece in range(count)], axis=0)


IR_VERSION = 8
"""As in NVIDIA's files."""
OPSET = ('ai.onnx', 11)
"""As in NVIDIA's files, although their operators are not in it."""
MODULES = 'mm2onnx.scn_modules'
"""Metadata key of JSON: node name -> module path."""
NODE_CLASSES: dict[str, type[Node]] = {
    'SparseConvolution': SparseConvolution,
    'Add': ir.Add,
    'QuantAdd': ir.Add,
    'Relu': ir.Relu,
    'ScatterDense': ir.ScatterDense,
    'Transpose': ir.Transpose,
    'Reshape': ir.Reshape,
}
UNREAD_FIELDS = ('output_padding', 'input_spatial_shape', 'output_spatial_shape', 'transposed', 'groups')
"""Fields of a convolution that the engine never reads."""


# ---- writing


def write(
    graph: SparseGraph, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a folded graph atomically as a libspconv file, see `to_onnx`."""
    model = to_onnx(graph, metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(sealed(model.SerializeToString()))


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
            f'{node.name} ({node.module}): has no bias, which the engine always reads; fold the graph first'
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
    """Read a libspconv file: fp16 weights, float32 ranges; ModelFileError: missing, damaged or other."""
    return from_onnx(files.read(path), path)


def from_onnx(model: onnx.ModelProto, path: object = 'the file') -> SparseGraph:
    parser = EngineParser(model.graph)
    for violation in errors(parser.violations):
        place = f'{path}: {violation.node}' if violation.node else path
        raise ModelFileError(f'{place}: {violation.message}; the file is damaged or of another kind')
    orders = [node.values['format'] for node in parser.nodes if node.op_type == 'ScatterDense']
    is_whole = orders and orders[0] in ORDERS and any(node.is_convolution for node in parser.nodes)
    if not is_whole or len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise ModelFileError(
            f'{path}: expected one input and output, a SparseConvolution, and a ScatterDense with a '
            f'format of {" or ".join(ORDERS)}; check that it is a libspconv file'
        )
    props = entries_of(model.metadata_props)
    modules = read_entry(props, MODULES.removeprefix(PREFIX), path) if MODULES in props else {}
    nodes = tuple(_node(node, modules.get(node.name, '')) for node in parser.nodes)
    grid = next(node.input_spatial_shape for node in nodes if isinstance(node, SparseConvolution))
    (rows, channels), output_shape = map(_sizes, (model.graph.input[0], model.graph.output[0]))
    return SparseGraph(nodes, orders[0], grid, channels, model.graph.output[0].name, output_shape, rows)


def _sizes(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)


def _node(node: ParsedNode, module: str) -> Node:
    values = dict(node.values)
    if node.is_convolution:
        values |= {name: node.unread[name] for name in UNREAD_FIELDS}
        ranges = values.pop('weight_dynamic_ranges')
        values |= dict(
            weight=node.weight.copy(),
            bias=node.bias.copy(),
            subm=bool(values['subm']),
            inverse=bool(values['inverse']),
            transposed=bool(values['transposed']),
            activation=values['activation'] or 'None',
            input_rows=node.unread['input_shape'][0],
            output_rows=node.unread['output_shape'][0],
            input_range=values.pop('input_dynamic_range'),
            weight_ranges=None if ranges is None else np.array(ranges, np.float32),
        )
    elif node.op_type in ADDITIONS:
        values['input_range'] = values.pop('input0_dynamic_range')
        del values['input1_dynamic_range']
    elif node.op_type == 'ScatterDense':
        values = dict(spatial_shape=values['input_spatial_shape'], output_shape=values['output_shape'])
    return NODE_CLASSES[node.op_type](node.name, module, node.inputs, node.output, **values)


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
            value = value.decode()
        elif not isinstance(value, int | float):
            value = list(value)
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
