"""The dtype and shape of every tensor of a graph. Needs onnx only."""

import functools
import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mmdeploy_ext.base.errors import ModelFileError, shape_text
from mmdeploy_ext.graphs.io.index import constant_value

PACKED_BITS = {'INT2': 2, 'UINT2': 2, 'INT4': 4, 'UINT4': 4, 'FLOAT4E2M1': 4}
PACKED_BITS |= {'FLOAT6E2M3': 6, 'FLOAT6E3M2': 6}
LARGEST_SHAPE = 1024
"""Elements: larger constants are no shapes; shape inference gets no values of larger initializers."""
INVENTED = 'unk__'
"""Prefix of names that shape inference gives to unknown sizes."""
_SHAPE_OPERATORS = """
Add And Cast Ceil Concat ConstantOfShape Div Equal Expand Flatten Floor Gather GatherElements Greater Identity
Less Max Min Mod Mul Neg Not Or Pow Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Round ScatterND
Slice Split Sqrt Squeeze Sub Tile Transpose Unsqueeze Where Xor
"""
SHAPE_OPERATORS = frozenset(_SHAPE_OPERATORS.split())
"""Operators, besides Shape and Size, that are evaluated to compute shapes."""


def infer(model: onnx.ModelProto, *, strict: bool = False) -> dict[str, onnx.TypeProto]:
    """Return tensor name -> type of the main graph's tensors with a known dense type."""
    slim, constants = skeleton(model), {}
    types = _infer_once(slim, strict)
    while fold_shapes(slim, types, constants):
        types = _infer_once(slim, strict)
    return types


def _infer_once(slim: onnx.ModelProto, strict: bool) -> dict[str, onnx.TypeProto]:
    try:
        inferred = onnx.shape_inference.infer_shapes(slim, strict_mode=strict, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError) as error:
        if strict:
            raise ModelFileError(f'shapes are inconsistent: {error}') from error
        inferred = slim
    graph = inferred.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type for value in values if value.type.WhichOneof('value')}
    for tensor in graph.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    return types


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without the values of large initializers, for shape inference."""
    slim = onnx.ModelProto(ir_version=model.ir_version)
    slim.opset_import.extend(model.opset_import)
    slim.functions.extend(model.functions)
    for field in ('input', 'output', 'value_info'):
        getattr(slim.graph, field).extend(getattr(model.graph, field))
    slim.graph.name = model.graph.name or 'graph'
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > LARGEST_SHAPE:
            slim.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            slim.graph.initializer.append(tensor)
    slim.graph.node.extend(model.graph.node)
    return slim


def fold_shapes(
    model: onnx.ModelProto,
    types: Mapping[str, onnx.TypeProto],
    constant_nodes: dict[int, dict[str, np.ndarray]] | None = None,
) -> int:
    """Replace nodes of shapes and small constants by Constant nodes, in place; return their number."""
    constant_nodes = {} if constant_nodes is None else constant_nodes
    tensors = {tensor.name: _small_array(tensor) for tensor in model.graph.initializer}
    constants = {name: array for name, array in tensors.items() if array is not None}
    folded = 0
    for index, node in enumerate(model.graph.node):
        if index in constant_nodes:
            constants.update(constant_nodes[index])
            continue
        outputs = _constant_outputs(node, constants, types, model)
        constants.update(outputs)
        if node.op_type == 'Constant':
            constant_nodes[index] = outputs
        elif len(outputs) == len(node.output) == 1:
            value = numpy_helper.from_array(*outputs.values())
            node.CopyFrom(helper.make_node('Constant', [], [node.output[0]], node.name, value=value))
            constant_nodes[index] = outputs
            folded += 1
    return folded


def _constant_outputs(
    node: onnx.NodeProto,
    constants: Mapping[str, np.ndarray],
    types: Mapping[str, onnx.TypeProto],
    model: onnx.ModelProto,
) -> dict[str, np.ndarray]:
    if node.domain not in ('', 'ai.onnx') or not node.output:
        return {}
    if node.op_type == 'Constant':
        tensors = [entry.t for entry in node.attribute if entry.name == 'value']
        value = _small_array(tensors[0]) if tensors else constant_value(node)
        is_small = value is not None and value.dtype != object and value.size <= LARGEST_SHAPE
        return {node.output[0]: value} if is_small else {}
    if node.op_type in ('Shape', 'Size'):
        sizes = shape(types.get(node.input[0]))
        if sizes is None:
            return {}
        bounds = {entry.name: entry.i for entry in node.attribute}
        sizes = sizes[bounds.get('start') : bounds.get('end')]
        if not all(isinstance(size, int) for size in sizes):
            return {}
        return {node.output[0]: np.asarray(math.prod(sizes) if node.op_type == 'Size' else sizes, np.int64)}
    if node.op_type not in SHAPE_OPERATORS or not all(name in constants for name in node.input if name):
        return {}
    names = {name: f'input_{index}' for index, name in enumerate(dict.fromkeys(filter(None, node.input)))}
    alone = onnx.NodeProto(op_type=node.op_type, domain=node.domain, attribute=node.attribute)
    alone.input.extend(names.get(name, '') for name in node.input)
    alone.output.extend(f'output_{index}' if name else '' for index, name in enumerate(node.output))
    opsets = tuple((entry.domain, entry.version) for entry in model.opset_import)
    try:
        evaluator = _evaluator(alone.SerializeToString(deterministic=True), model.ir_version, opsets)
        values = evaluator.run(None, {names[name]: constants[name] for name in names})
    except Exception:  # a broken graph is an error where it is run; here its shapes stay unknown
        return {}
    arrays = [np.asarray(value) for value in values if isinstance(value, np.ndarray | np.generic)]
    if len(arrays) < len(values) or any(array.size > LARGEST_SHAPE for array in arrays):
        return {}
    return dict(zip(node.output, arrays, strict=True))


@functools.lru_cache(maxsize=512)
def _evaluator(node: bytes, ir_version: int, opsets: tuple[tuple[str, int], ...]) -> ReferenceEvaluator:
    parsed = onnx.NodeProto.FromString(node)
    inputs = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(filter(None, parsed.input))]
    outputs = [onnx.ValueInfoProto(name=name) for name in parsed.output]
    graph = helper.make_graph([parsed], 'node', inputs, outputs)
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    return ReferenceEvaluator(onnx.ModelProto(ir_version=ir_version, graph=graph, opset_import=imports))


def _small_array(tensor: onnx.TensorProto) -> np.ndarray | None:
    if math.prod(tensor.dims) > LARGEST_SHAPE or tensor.external_data:
        return None
    try:
        return numpy_helper.to_array(tensor)
    except (TypeError, ValueError):
        return None


def shape(tensor_type: onnx.TypeProto | None) -> list[int | str] | None:
    """Return sizes: numbers, names of axes, '?' for unknown ones."""
    if tensor_type is None or not tensor_type.HasField('tensor_type'):
        return None
    if not tensor_type.tensor_type.HasField('shape'):
        return None
    sizes = []
    for dim in tensor_type.tensor_type.shape.dim:
        name = '' if dim.dim_param.startswith(INVENTED) else dim.dim_param
        is_fixed = dim.HasField('dim_value') and dim.dim_value >= 0
        sizes.append(dim.dim_value if is_fixed else name or '?')
    return sizes


def shapes(values: Iterable[onnx.ValueInfoProto]) -> dict[str, list[int | str] | None]:
    """Return name -> sizes, as `shape` gives them."""
    return {value.name: shape(value.type) for value in values}


def dtype(data_type: int) -> str:
    return type_name(data_type).lower()


def text(value_type: onnx.TypeProto | None) -> str:
    if value_type is None or value_type.WhichOneof('value') is None:
        return '?'
    if not value_type.HasField('tensor_type'):
        return value_type.WhichOneof('value').removesuffix('_type')
    sizes = shape(value_type)
    axes = '...' if sizes is None else ','.join(map(str, sizes))
    return f'{dtype(value_type.tensor_type.elem_type)}[{axes}]'


def shape_label(value_type: onnx.TypeProto | None) -> str:
    """Return e.g. '1x3xhxw', 'scalar', '' for an unknown rank."""
    sizes = shape(value_type)
    return '' if sizes is None else shape_text(sizes)


def byte_size(data_type: int, count: int) -> int:
    """Return the raw size in bytes of `count` elements."""
    bits = PACKED_BITS.get(type_name(data_type)) or 8 * helper.tensor_dtype_to_np_dtype(data_type).itemsize
    return -(-count * bits // 8)


@functools.cache
def type_name(elem_type: int) -> str:
    """Return e.g. 'FLOAT', or 'type 99'."""
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return names.get(elem_type, f'type {elem_type}')
