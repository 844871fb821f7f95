"""The dtype and shape of every tensor of a graph. Needs onnx only."""

import math
from collections.abc import Iterable

import onnx

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.graph.io.static import fold_shapes

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
