"""Level 1 of the ladder: is the file a valid graph, as asked for, with the weights of the checkpoint?"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from mmdeploy_ext.precision import written_precision
from mmdeploy_ext.verify.verdict import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mmdeploy_ext.metadata import Metadata
    from mmdeploy_ext.spec import GraphSpec

DERIVED_ELEMENTS = 64
"""Constants of zeros or ones up to this size are helpers of normalisation layers, identities are poses."""


def check_structure(
    model: onnx.ModelProto,
    metadata: Metadata,
    weights: Mapping[str, np.ndarray],
    derived: Iterable[str] = (),
    derives: Callable[[np.ndarray], bool] = lambda array: False,
) -> list[Check]:
    """Run all checks of level 1.

    Args:
        model: the file.
        metadata: what it says about itself.
        weights: name -> array of the model that was exported (batch normalisation folded).
        derived: prefixes of constants that the family computes.
        derives: tells by its value whether a constant is one that the family computes.
    """
    return [
        _checker(model),
        _shape_inference(model),
        _opset(model, int(metadata.options['opset'])),
        _precision(model, metadata.options.get('precision') or 'fp32'),
        *_names(model, metadata.spec),
        _inputs_used(model, metadata.spec),
        _initializers(model, metadata.spec, weights, tuple(derived), derives),
    ]


def _checker(model: onnx.ModelProto) -> Check:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        return Check('onnx.checker', False, ' '.join(str(error).split())[:300])
    return Check('onnx.checker', True)


def _shape_inference(model: onnx.ModelProto) -> Check:
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        return Check('strict shape inference', False, ' '.join(str(error).split())[:300])
    return Check('strict shape inference', True)


def _opset(model: onnx.ModelProto, asked: int) -> Check:
    written = [entry.version for entry in model.opset_import if entry.domain in ('', 'ai.onnx')]
    return Check('opset', written == [asked], f'asked for {asked}, written {written}')


def _precision(model: onnx.ModelProto, asked: str) -> Check:
    """A file that holds float16 and does not say so would be judged by the bars of float32."""
    written = written_precision(model)
    return Check('precision', written == asked, f'asked for {asked}, written {written}')


def _tensor_text(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    kind = value.type.tensor_type
    axes = tuple(dim.dim_value if dim.HasField('dim_value') else dim.dim_param for dim in kind.shape.dim)
    return value.name, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), axes


def _names(model: onnx.ModelProto, spec: GraphSpec) -> list[Check]:
    checks = []
    for title, values, tensors in (
        ('inputs', model.graph.input, spec.inputs),
        ('outputs', model.graph.output, spec.outputs),
    ):
        found = [_tensor_text(value) for value in values]
        expected = [(tensor.name, tensor.dtype, tensor.axes) for tensor in tensors]
        differing = [
            f'got {got}, expected {want}' for got, want in zip(found, expected, strict=False) if got != want
        ]
        if len(found) != len(expected):
            differing.append(f'got {len(found)}, expected {len(expected)}')
        checks.append(Check(f'{title} equal the spec', found == expected, '; '.join(differing)[:300]))
    return checks


def _inputs_used(model: onnx.ModelProto, spec: GraphSpec) -> Check:
    """Every input reaches an output, or the spec says that nothing uses it."""
    reached = set(spec.output_names)
    for node in reversed(model.graph.node):
        if reached.intersection(node.output):
            reached.update(node.input)
            for attribute in node.attribute:
                for graph in ([attribute.g] if attribute.HasField('g') else []) + list(attribute.graphs):
                    reached.update(name for inner in graph.node for name in inner.input)
    frozen = [tensor.name for tensor in spec.inputs if tensor.name not in reached and not tensor.unused]
    return Check(
        'every input reaches an output', not frozen, f'frozen: {", ".join(frozen)}' if frozen else ''
    )


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _plain(array: np.ndarray, any_size: bool = False) -> bool:
    """Return whether a small constant can be no weight: one number, all zeros or ones, the identity."""
    plain = bool((array == 0).all() or (array == 1).all())
    plain |= array.ndim == 2 and np.array_equal(array, np.eye(*array.shape))
    return array.size <= 1 or ((any_size or array.size <= DERIVED_ELEMENTS) and plain)


def _read_only_by(model: onnx.ModelProto, kind: str) -> set[str]:
    """Return the values that nodes of one type read and no other node does."""
    readers = {True: set(), False: set()}
    for node in model.graph.node:
        readers[node.op_type == kind].update(node.input)
    return readers[True] - readers[False]


def _initializers(
    model: onnx.ModelProto,
    spec: GraphSpec,
    weights: Mapping[str, np.ndarray],
    derived: tuple[str, ...],
    derives: Callable[[np.ndarray], bool] = lambda array: False,
) -> Check:
    """Every constant is bit for bit a weight, as stored or transposed, or plainly none.

    A constant that bears the name of a parameter has to be that parameter, whatever its size. Any other one
    has to be some weight, unless it is listed as derived, a single number, a few zeros or ones, an identity,
    a scale that only Resize reads, the zeros and ones of a LayerNormalization without parameters, or zeros
    for the bias that a DeformConv has not.
    """
    known = set()
    resize_only, norm_only, deform_only = (
        _read_only_by(model, kind) for kind in ('Resize', 'LayerNormalization', 'DeformConv')
    )
    for name, array in weights.items():
        # exporters take the packed projections of nn.MultiheadAttention apart
        packed = name.endswith(('in_proj_weight', 'in_proj_bias'))
        for part in (array, *(np.split(array, 3) if packed else ())):
            known.add(_digest(part))
            if part.ndim == 2:
                known.add(_digest(part.T))
    unknown, matched = [], 0
    constants = [(value.name, value.name, value) for value in model.graph.initializer]
    constants += [
        (node.name or node.output[0], node.output[0], attribute.t)
        for node in model.graph.node
        if node.op_type == 'Constant'
        for attribute in node.attribute
        if attribute.name == 'value'
    ]
    for name, read_as, tensor in constants:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind != 'f' or name in spec.input_names:
            continue
        parameter = weights.get(name.rsplit('/', 1)[-1].removeprefix('model.'))
        if parameter is not None and _digest(parameter) != _digest(array):
            unknown.append(f'{name} {array.shape}')
        elif _digest(array) in known:
            matched += 1
        elif not (
            name.startswith(derived or ('\0',))
            or read_as in resize_only
            or _plain(array, any_size=read_as in norm_only)
            or (read_as in deform_only and not array.any())
            or derives(array)
        ):
            unknown.append(f'{name} {array.shape}')
    detail = f'{matched} found'
    if unknown:
        detail = f'{len(unknown)} are not in the checkpoint: {", ".join(unknown[:5])}'
    return Check('weights come from the checkpoint', not unknown and matched > 0, detail)
