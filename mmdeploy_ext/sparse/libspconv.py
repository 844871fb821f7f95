"""Writer and reader of the libspconv dialect: the file that NVIDIA's sparse convolution engine loads.

It is no valid ONNX, by the engine's choice: SparseConvolution and ScatterDense stand in the default domain,
Reshape and Transpose carry an attribute `dims`, the coordinates are no input, and the opset's domain is the
literal 'ai.onnx'. ONNX checkers and shape inference fail on it; `contract.check` knows the engine's rules.

Source: golden ALGORITHM.md, sections 1 and 2.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmdeploy_ext.core.errors import ExportError
from mmdeploy_ext.core.files import atomic_path
from mmdeploy_ext.sparse import ir
from mmdeploy_ext.sparse.libspconv_reader import MODULES, from_onnx, load

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from mmdeploy_ext.sparse.ir import Add, Node, SparseConvolution, SparseGraph

IR_VERSION = 8
OPSET = ('ai.onnx', 11)


def write(
    graph: SparseGraph, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a folded graph, in its coordinate order, as a libspconv file, atomically; see `to_onnx`."""
    model = to_onnx(graph, metadata)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def read(path: str | os.PathLike[str]) -> SparseGraph:
    """Return the graph of a libspconv file; what `write` wrote comes back equal, with fp16 weights."""
    return from_onnx(load(path), path)


def to_onnx(graph: SparseGraph, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """Return a graph in the dialect; float32 weights are rounded to fp16 here.

    `metadata` are `metadata_props` to add, which the engine does not read.

    Raises:
        ExportError: a BatchNorm that is not folded, a convolution without a bias, weights beyond fp16; the
            node and its module are named.
    """
    proto = helper.make_graph(
        [_node(node, graph.order) for node in graph.nodes],
        'scn',
        [helper.make_tensor_value_info('0', TensorProto.FLOAT16, [graph.input_rows, graph.in_channels])],
        [helper.make_tensor_value_info(graph.output, TensorProto.FLOAT16, list(graph.output_shape))],
        [tensor for node in graph.convolutions() for tensor in _initializers(node)],
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


def _node(node: Node, order: str) -> onnx.NodeProto:
    inputs = list(node.inputs)
    if isinstance(node, ir.SparseConvolution):
        inputs += [name for name, _ in _parameters(node)]
    return helper.make_node(node.op_type, inputs, [node.output], name=node.name, **_attributes(node, order))


def _attributes(node: Node, order: str) -> dict[str, Any]:
    if isinstance(node, ir.SparseConvolution):
        return _convolution(node)
    if isinstance(node, ir.Add):
        names = () if node.input_range is None else ('input0_dynamic_range', 'input1_dynamic_range')
        return {name: float(node.input_range) for name in names} | _precision(node)
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


def _parameters(node: SparseConvolution) -> list[tuple[str, np.ndarray]]:
    if node.bias is None:
        raise ExportError(
            f'{node.name} ({node.module}): has no bias, which the engine reads unasked; fold the graph first'
        )
    number = node.name.removeprefix('conv')
    return [(f'spconv{number}.weight', node.weight), (f'spconv{number}.bias', node.bias)]


def _initializers(node: SparseConvolution) -> list[TensorProto]:
    tensors = []
    for name, array in _parameters(node):
        with np.errstate(over='ignore'):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            worst = np.abs(array).max()
            raise ExportError(
                f'{name} ({node.module}): its largest magnitude is {worst:g}, beyond fp16 (65504); '
                f'the weights are damaged or not trained in this range'
            )
        tensors.append(helper.make_tensor(name, TensorProto.FLOAT16, half.shape, half.tobytes(), raw=True))
    return tensors


def _convolution(node: SparseConvolution) -> dict[str, Any]:
    attributes: dict[str, Any] = {name: list(getattr(node, name)) for name in ir.TRIPLES}
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
    return attributes | _precision(node)


def _precision(node: SparseConvolution | Add) -> dict[str, str]:
    attributes = dict(precision=node.precision, output_precision=node.output_precision)
    return {name: value for name, value in attributes.items() if value}


def to_node_list(model: onnx.ModelProto) -> dict[str, Any]:
    """Return a file as plain data, for comparison: everything in it, initializers by hash.

    It is as the stored node lists of the reference exporter have it (golden INDEX.md), without
    `metadata_props`.
    """
    graph = model.graph
    return dict(
        meta=_meta(model),
        inputs=list(map(_tensor_info, graph.input)),
        outputs=list(map(_tensor_info, graph.output)),
        nodes=list(map(_listed, graph.node)),
        initializers=list(map(_initializer_info, graph.initializer)),
    )


def _meta(model: onnx.ModelProto) -> dict[str, Any]:
    graph = model.graph
    names = 'ir_version producer_name producer_version domain model_version doc_string'
    return {name: getattr(model, name) for name in names.split()} | dict(
        opset_import=[dict(domain=opset.domain, version=opset.version) for opset in model.opset_import],
        graph_name=graph.name,
        n_nodes=len(graph.node),
        n_initializers=len(graph.initializer),
        n_value_info=len(graph.value_info),
    )


def _tensor_info(info: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = info.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
    return dict(name=info.name, dtype=TensorProto.DataType.Name(kind.elem_type), shape=shape)


def _listed(node: onnx.NodeProto) -> dict[str, Any]:
    kind = onnx.AttributeProto.AttributeType.Name
    attributes = {one.name: dict(type=kind(one.type), value=_plain(one)) for one in node.attribute}
    return dict(
        op_type=node.op_type,
        name=node.name,
        domain=node.domain,
        inputs=list(node.input),
        outputs=list(node.output),
        attributes=attributes,
    )


def _plain(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors='backslashreplace')
    if hasattr(value, 'SerializeToString'):  # a graph or tensor, which no file of this dialect has
        return value.SerializeToString(deterministic=True).hex()
    if isinstance(value, int | float):
        return value
    return [str(entry) if hasattr(entry, 'SerializeToString') else entry for entry in value]


def _initializer_info(tensor: TensorProto) -> dict[str, Any]:
    return dict(
        name=tensor.name,
        dtype=TensorProto.DataType.Name(tensor.data_type),
        dims=list(tensor.dims),
        storage='raw_data' if tensor.HasField('raw_data') else 'typed',
        bytes=len(tensor.raw_data),
        sha256=hashlib.sha256(tensor.raw_data).hexdigest(),
    )
