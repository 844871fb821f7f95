"""The dtype and shape of every tensor of a graph. Needs onnx only."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.graph.io.constants import constant_value

LARGEST_SHAPE = 1024
"""Elements: longer constants are no shapes, and their values are left out when shapes are inferred."""
INVENTED = 'unk__'
"""How names begin that shape inference gives to sizes it cannot tell."""


def infer(model: onnx.ModelProto, *, strict: bool = False) -> dict[str, onnx.TypeProto]:
    """Return tensor name -> type of all tensors of the main graph whose type can be told.

    Weights are not copied; `strict` raises where nodes and shapes do not fit together.

    Raises:
        ModelFileError: `strict`, and onnx found a node that cannot work; its message names the node.
    """
    slim = skeleton(model)
    found = _infer_once(slim, strict)
    while fold_shapes(slim, found):
        found = _infer_once(slim, strict)
    return found


def _infer_once(slim: onnx.ModelProto, strict: bool) -> dict[str, onnx.TypeProto]:
    try:
        inferred = onnx.shape_inference.infer_shapes(slim, strict_mode=strict, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError) as error:
        if strict:
            raise ModelFileError(f'shapes do not fit together: {error}') from error
        inferred = slim
    graph = inferred.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    found = {value.name: value.type for value in values if value.type.WhichOneof('value')}
    for tensor in graph.initializer:
        found[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    return found


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without the values of large constants: all that shape inference reads, in few bytes."""
    slim = onnx.ModelProto(ir_version=model.ir_version)
    slim.opset_import.extend(model.opset_import)
    slim.functions.extend(model.functions)
    for field in ('input', 'output', 'value_info', 'sparse_initializer'):
        getattr(slim.graph, field).extend(getattr(model.graph, field))
    slim.graph.name = model.graph.name or 'graph'
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > LARGEST_SHAPE:
            slim.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            slim.graph.initializer.append(tensor)
    slim.graph.node.extend(model.graph.node)
    return slim


def shape(kind: onnx.TypeProto | None) -> list[int | str] | None:
    """Return the sizes of a tensor type: numbers, names, '?' for unknown ones; None when even the rank is."""
    if kind is None or not kind.HasField('tensor_type') or not kind.tensor_type.HasField('shape'):
        return None
    found = []
    for size in kind.tensor_type.shape.dim:
        name = '' if size.dim_param.startswith(INVENTED) else size.dim_param
        found.append(size.dim_value if size.HasField('dim_value') else name or '?')
    return found


def shapes(values: Iterable[onnx.ValueInfoProto]) -> dict[str, list[int | str] | None]:
    """Return name -> `shape` of inputs or outputs."""
    return {value.name: shape(value.type) for value in values}


def dtype(kind: int) -> str:
    """Return the name of an ONNX dtype, e.g. 'float' or 'int64'."""
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return names.get(kind, str(kind)).lower()


def text(kind: onnx.TypeProto | None) -> str:
    """Return e.g. 'float[1,3,h,w]'; '?' when nothing is known."""
    if kind is None or kind.WhichOneof('value') is None:
        return '?'
    if not kind.HasField('tensor_type'):
        return kind.WhichOneof('value').removesuffix('_type')
    found = shape(kind)
    return f'{dtype(kind.tensor_type.elem_type)}[{"..." if found is None else ",".join(map(str, found))}]'


def sizes(kind: onnx.TypeProto | None) -> str:
    """Return e.g. '1x3xhxw', '' when nothing is known."""
    found = shape(kind)
    return '' if found is None else 'x'.join(map(str, found)) or 'scalar'


def type_name(elem_type: int) -> str:
    """Return ONNX's word for a type of elements, such as 'FLOAT', or 'type 99' for a number that it lacks."""
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return names.get(elem_type, f'type {elem_type}')


LARGEST = 1024
"""Elements: longer tensors are no shapes."""
_NAMES = """
Add And Cast Ceil Concat ConstantOfShape Div Equal Expand Flatten Floor Gather Greater Identity Less Max Min
Mod Mul Neg Not Or Range ReduceProd Reshape Round ScatterND Slice Split Sqrt Squeeze Sub Transpose Unsqueeze
Where Xor GatherElements ReduceMax ReduceMin ReduceSum Pow Tile
"""
OPERATORS = frozenset(_NAMES.split())
"""Operators that shapes are computed with; others are not evaluated."""


def fold_shapes(model: onnx.ModelProto, kinds: Mapping[str, onnx.TypeProto]) -> int:
    """Replace nodes whose values follow from shapes by Constant nodes, in place; returns how many.

    The model is one without large constants; `kinds` are its types, as far as they are known.
    """
    tensors = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
    known = {name: value for name, value in tensors.items() if value is not None}
    folded = 0
    for node in model.graph.node:
        values = _values(node, known, kinds, model)
        known.update(values)
        if node.op_type != 'Constant' and values and len(values) == len(node.output) == 1:
            value = numpy_helper.from_array(*values.values())
            node.CopyFrom(onnx.helper.make_node('Constant', [], [node.output[0]], node.name, value=value))
            folded += 1
    return folded


def _values(
    node: onnx.NodeProto,
    known: Mapping[str, np.ndarray],
    kinds: Mapping[str, onnx.TypeProto],
    model: onnx.ModelProto,
) -> dict[str, np.ndarray]:
    """Return the outputs of a node that are known; {} when they are not."""
    if node.domain not in ('', 'ai.onnx') or not node.output:
        return {}
    if node.op_type == 'Constant':
        tensors = [entry.t for entry in node.attribute if entry.name == 'value']
        value = _array(tensors[0]) if tensors else constant_value(node)
        small = value is not None and value.dtype != object and value.size <= LARGEST
        return {node.output[0]: value} if small else {}
    if node.op_type in ('Shape', 'Size'):
        return _shape(node, kinds)
    if node.op_type not in OPERATORS or not all(name in known for name in node.input if name):
        return {}
    return _evaluate(node, known, model)


def _array(tensor: onnx.TensorProto) -> np.ndarray | None:
    """Return a small constant; None for a large one, one that lies elsewhere, and one that was cut short."""
    if math.prod(tensor.dims) > LARGEST or tensor.external_data:
        return None
    try:
        return numpy_helper.to_array(tensor)
    except (TypeError, ValueError):
        return None


def _shape(node: onnx.NodeProto, kinds: Mapping[str, onnx.TypeProto]) -> dict[str, np.ndarray]:
    kind = kinds.get(node.input[0])
    if kind is None or not kind.tensor_type.HasField('shape'):
        return {}
    bounds = {entry.name: entry.i for entry in node.attribute}
    chosen = kind.tensor_type.shape.dim[bounds.get('start') : bounds.get('end')]
    if not all(size.HasField('dim_value') for size in chosen):
        return {}
    sizes = [size.dim_value for size in chosen]
    return {node.output[0]: np.asarray(math.prod(sizes) if node.op_type == 'Size' else sizes, np.int64)}


def _evaluate(
    node: onnx.NodeProto, known: Mapping[str, np.ndarray], model: onnx.ModelProto
) -> dict[str, np.ndarray]:
    names = list(dict.fromkeys(name for name in node.input if name))
    inputs = [onnx.ValueInfoProto(name=name) for name in names]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = onnx.helper.make_graph([node], 'one', inputs, outputs)
    one = onnx.ModelProto(ir_version=model.ir_version, graph=graph, opset_import=model.opset_import)
    try:
        found = ReferenceEvaluator(one).run(None, {name: known[name] for name in names})
    except Exception:  # a broken graph is an error where it is run; here its shapes stay unknown
        return {}
    if not all(isinstance(value, np.ndarray | np.generic) and np.size(value) <= LARGEST for value in found):
        return {}
    return dict(zip(node.output, map(np.asarray, found), strict=True))
