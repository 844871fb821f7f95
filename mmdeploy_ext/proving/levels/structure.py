"""Level 1 of a proof besides the comparison of graphs: is a file valid, and does it keep spec and options?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from mmdeploy_ext.contract.spec import written_precision
from mmdeploy_ext.core.errors import one_line
from mmdeploy_ext.graph.io.index import random_nodes, reads
from mmdeploy_ext.proving.results import Check

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec


def check_structure(model: onnx.ModelProto, metadata: Metadata) -> list[Check]:
    """Return the checks of a file that need no model: validity, opset, precision, interface, operators.

    The graph is compared with a fresh export elsewhere, see `fresh_export.py`.
    """
    opset = metadata.options['opset']
    opsets = [entry.version for entry in model.opset_import if entry.domain in ('', 'ai.onnx')]
    if 'convert-opset' in metadata.edits:
        opset = opsets[0]
    # a file that holds float16 and does not say so would be judged by the bars of float32
    claimed, precision = metadata.options.get('precision') or 'fp32', written_precision(model)
    return [
        check_written(model),
        check_inference(model),
        Check('opset', opsets == [opset], f'asked for {opset}, written {opsets}'),
        Check('precision', precision == claimed, f'asked for {claimed}, written {precision}'),
        *check_interface(model, metadata.spec),
        check_inputs_used(model, metadata.spec),
        check_not_random(model),
    ]


def check_valid(model: onnx.ModelProto) -> Check:
    """Run onnx.checker on a file."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        return Check('onnx.checker', False, one_line(error)[:300])
    return Check('onnx.checker', True)


def check_written(model: onnx.ModelProto) -> Check:
    """Run onnx.checker on an exported file, and look for parts that no export writes.

    An engine may compute by these: they are for trainings, quantisation and several devices.
    """
    nodes = [node for node in model.graph.node if getattr(node, 'device_configurations', ())]
    parts = {
        'training_info': model.training_info,
        'quantization_annotation': model.graph.quantization_annotation,
        'configuration': getattr(model, 'configuration', ()),
        'device_configurations of nodes': nodes,
    }
    unwritten = [name for name, content in parts.items() if content]
    detail = f'the file has {", ".join(unwritten)}, which no export writes; export it again'
    return Check('onnx.checker', False, detail) if unwritten else check_valid(model)


def check_not_random(model: onnx.ModelProto) -> Check:
    """Check that no operator draws random numbers: a graph with one may be wrong in any run but a proof's."""
    drawn = random_nodes(model)
    return Check('no operator is random', not drawn, ', '.join(drawn[:5]))


def check_inference(model: onnx.ModelProto) -> Check:
    """Let ONNX infer all types and shapes, in its strict mode."""
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        return Check('strict shape inference', False, one_line(error)[:300])
    return Check('strict shape inference', True)


def check_interface(model: onnx.ModelProto, spec: GraphSpec) -> list[Check]:
    """Return two checks, of inputs and outputs: whether names, dtypes, axes and their order equal the spec.

    Of inputs the default values have to, too.
    """
    checks = []
    for title, values in (('inputs', model.graph.input), ('outputs', model.graph.output)):
        tensors = getattr(spec, title)
        actual = [_interface_tensor(value) for value in values]
        expected = [(tensor.name, tensor.dtype, tensor.axes) for tensor in tensors]
        pairs = zip(actual, expected, strict=False)
        differing = [f'got {got}, expected {tensor}' for got, tensor in pairs if got != tensor]
        if len(actual) != len(expected):
            names, expected_names = ([entry[0] for entry in side] for side in (actual, expected))
            absent = ', '.join(name for name in expected_names if name not in names)
            extra = ', '.join(name for name in names if name not in expected_names)
            differing.insert(0, f'absent: {absent or "none"}, too many: {extra or "none"}')
        if title == 'inputs':
            differing += _differing_defaults(model, tensors)
        checks.append(Check(f'{title} equal the spec', not differing, '; '.join(differing)[:300]))
    return checks


def _interface_tensor(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    """Return name, dtype and axes of an input or output of a graph; the dtype is '?' if it has none."""
    tensor_type = value.type.tensor_type
    axes = tuple(
        dim.dim_value if dim.HasField('dim_value') else dim.dim_param for dim in tensor_type.shape.dim
    )
    has_dtype = tensor_type.elem_type in onnx.helper.get_all_tensor_dtypes()
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)) if has_dtype else '?'
    return value.name, dtype, axes


def _differing_defaults(model: onnx.ModelProto, inputs: tuple[TensorSpec, ...]) -> list[str]:
    """Return how the default values of optional inputs differ from the spec."""
    initializers = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    differing = []
    for tensor in inputs:
        array = initializers.get(tensor.name)
        expected = 'none' if tensor.default is None else f'{tensor.default:g}'
        if array is None and tensor.default is not None:
            differing.append(f'{tensor.name} has no default, expected {expected}')
        elif array is not None and not _is_default(array, tensor):
            values = ', '.join(map(str, sorted({*array.flatten().tolist()})[:3]))
            text = f'{values} {array.dtype}{list(array.shape)}'
            differing.append(f'{tensor.name} has the default {text}, expected {expected}')
    return differing


def _is_default(array: np.ndarray, tensor: TensorSpec) -> bool:
    """Return whether an initializer holds the default value of an input in its dtype and shape."""
    if tensor.default is None or array.ndim != len(tensor.axes) or not array.size:
        return False
    sizes = zip(array.shape, tensor.axes, strict=True)
    shape = tuple(size if isinstance(axis, str) else axis for size, axis in sizes)
    return array.dtype == np.dtype(tensor.dtype) and np.array_equal(array, np.full(shape, tensor.default))


def check_inputs_used(model: onnx.ModelProto, spec: GraphSpec) -> Check:
    """Check that every input reaches an output of the spec, apart from those that the spec marks `unused`."""
    used = [tensor.name for tensor in spec.inputs if not tensor.unused]
    frozen = unreached_inputs(model, used, spec.output_names)
    detail = f'frozen: {", ".join(frozen)}' if frozen else ''
    return Check('every input reaches an output', not frozen, detail)


def unreached_inputs(model: onnx.ModelProto, names: Iterable[str], outputs: Iterable[str]) -> list[str]:
    """Return those of the inputs `names` from which no path of nodes leads to one of `outputs`."""
    reached = set(outputs)
    for node in reversed(model.graph.node):
        if reached.intersection(node.output):
            reached.update(reads(node))
    return [name for name in names if name not in reached]
