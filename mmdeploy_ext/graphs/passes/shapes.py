"""Other shapes for the inputs of a graph: axes fixed, or opened."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import onnx

from mmdeploy_ext.base.errors import ModelFileError, UsageError
from mmdeploy_ext.graphs.edits import drop_metadata
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.files import check_ordinary
from mmdeploy_ext.graphs.io.index import Index, all_graphs, did_you_mean
from mmdeploy_ext.spec.metadata import PREFIX, Metadata
from mmdeploy_ext.spec.tensors import GraphSpec, TensorSpec

OPEN = 'dynamic', 'dynamic_batch'
"""Options of an export that leave axes of its pictures open."""
UNKNOWN = '?'
Shape = Sequence[int | str]
"""Sizes, names of axes or `UNKNOWN`, one for each axis."""


def set_shapes(
    model: onnx.ModelProto,
    shapes: Mapping[str, Shape] | None = None,
    axes: Mapping[str, int | str] | None = None,
) -> onnx.ModelProto:
    """Return a model with other input shapes; all types are inferred anew.

    `axes` (name -> size or another name) changes every input with this axis. `shapes` (input -> whole shape
    of sizes, names, or '?') overrides `axes`; names and '?' open a fixed axis. Sizes that the exporter wrote
    into constants stay.
    """
    check_ordinary(model)
    shapes, axes, index = dict(shapes or {}), dict(axes or {}), Index(model)
    result = copy.deepcopy(model)
    inputs = {value.name: value for value in result.graph.input if value.name in index.inputs}
    _check_shapes(inputs, shapes, axes)
    before = types.shapes(inputs.values())
    for value in inputs.values():
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in axes:
                _set_size(dim, axes[dim.dim_param])
        if value.name in shapes:
            _set_shape(value, shapes[value.name])
    after = types.shapes(inputs.values())
    if before != after:
        replaced: dict[str, set[int | str]] = {}
        for name, shape in before.items():
            for old, new in zip(shape or (), after[name] or (), strict=False):
                if isinstance(old, str) and old != UNKNOWN:
                    replaced.setdefault(old, set()).add(new)
        new_sizes = {name: next(iter(new)) if len(new) == 1 else UNKNOWN for name, new in replaced.items()}
        _infer_outputs(result, {**new_sizes, **axes})
    return result


def _check_shapes(
    inputs: Mapping[str, onnx.ValueInfoProto], shapes: Mapping[str, Shape], axes: Mapping[str, int | str]
) -> None:
    for name, shape in shapes.items():
        if name not in inputs:
            raise UsageError(
                f'{name!r} is not an input of the graph{did_you_mean(name, inputs)}; it has '
                f'{", ".join(inputs)}'
            )
        tensor_type = inputs[name].type.tensor_type
        if tensor_type.HasField('shape') and len(tensor_type.shape.dim) != len(shape):
            count = 'one axis' if len(shape) == 1 else f'{len(shape)} axes'
            raise UsageError(
                f'{name}={"x".join(map(str, shape))}: has {count}, the input has '
                f'{len(tensor_type.shape.dim)} ({types.text(inputs[name].type)})'
            )
    dims = [dim for value in inputs.values() for dim in value.type.tensor_type.shape.dim]
    axis_names = {dim.dim_param for dim in dims} - {''}
    for name in axes:
        if name not in axis_names:
            text = ', '.join(sorted(axis_names)) or 'none'
            hint = did_you_mean(name, axis_names)
            raise UsageError(f'{name!r} is not a named input axis{hint}; there are: {text}')
    for name, size in [*axes.items(), *((name, size) for name, shape in shapes.items() for size in shape)]:
        if isinstance(size, int) and not 1 <= size < 2**63:
            raise UsageError(f'{name}={size}: expected an integer from 1 to what 64 bits hold')


def _set_shape(value: onnx.ValueInfoProto, shape: Shape) -> None:
    value.type.tensor_type.shape.ClearField('dim')
    for size in shape:
        _set_size(value.type.tensor_type.shape.dim.add(), size)


def _set_size(dim: onnx.TensorShapeProto.Dimension, size: int | str) -> None:
    if isinstance(size, int):
        dim.dim_value = size
    elif size == UNKNOWN:
        dim.ClearField('value')
    else:
        dim.dim_param = size


def _infer_outputs(model: onnx.ModelProto, new_sizes: Mapping[str, int | str]) -> None:
    graph = model.graph
    stated_shapes = types.shapes(graph.output)
    for outdated in all_graphs(graph):
        outdated.ClearField('value_info')
    for value in graph.output:
        if value.type.HasField('tensor_type'):
            value.type.tensor_type.ClearField('shape')
    inferred = types.infer(model, strict=True)

    def kept(size: int | str) -> int | str:
        # a size that was fixed and cannot be inferred now may depend on an axis that was opened
        return UNKNOWN if isinstance(size, int) else new_sizes.get(size, size)

    for value in graph.output:
        stated, shape = stated_shapes[value.name], types.shape(inferred.get(value.name))
        if shape is None and stated is not None:
            shape = [kept(size) for size in stated]
        elif shape is not None and stated is not None and len(stated) == len(shape):
            shape = [kept(old) if new == UNKNOWN else new for old, new in zip(stated, shape, strict=True)]
        elif shape is not None:
            shape = [size if isinstance(size, int) else UNKNOWN for size in shape]
        if shape is not None:
            _set_shape(value, shape)
    inner = {name for node in graph.node for name in node.output} - stated_shapes.keys()
    graph.value_info.extend(
        onnx.ValueInfoProto(name=name, type=value_type)
        for name, value_type in inferred.items()
        if name in inner
    )


def with_fixed_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with metadata that fit its changed input shapes."""
    props = {entry.key: entry.value for entry in model.metadata_props}
    if f'{PREFIX}preprocess' not in props:
        return model
    try:
        metadata = Metadata.from_props(props)
    except ModelFileError:
        return model
    shapes = types.shapes(model.graph.input)
    if _has_inputs(metadata.spec, shapes):
        return model
    options, opened = metadata.options, [name for name in OPEN if metadata.options.get(name)]
    image = shapes.get(metadata.spec.inputs[0].name) or ()
    is_fixed = len(image) == 4 and all(isinstance(size, int) for size in image)
    result = copy.deepcopy(model)
    if metadata.samples == 'images' and opened and is_fixed:
        batch = image[0]
        height, width = (image[place] for place in metadata.spec.inputs[0].sides)
        outputs = types.shapes(model.graph.output)
        spec = fixed_spec(metadata.spec, (batch, height, width), outputs)
        if _has_inputs(spec, shapes):
            changes = dict(batch=batch, height=height, width=width) | dict.fromkeys(opened, False)
            rule = dataclasses.replace(metadata.preprocess, size=(height, width))
            fixed = dataclasses.replace(
                metadata, spec=spec, options=dict(options, **changes), preprocess=rule
            )
            onnx.helper.set_model_props(result, {**props, **fixed.to_props()})
            return result
    drop_metadata(result)
    return result


def fixed_spec(spec: GraphSpec, size: tuple[int, int, int], outputs: Mapping[str, Shape | None]) -> GraphSpec:
    """Return the spec of a graph of pictures with fixed (batch, height, width).

    `outputs`: name -> inferred shape; sizes replace the names of axes.
    """
    image = spec.inputs[0]
    sizes = dict(zip((image.axes[place] for place in (0, *image.sides)), size, strict=True))

    def fixed(tensor: TensorSpec, inferred: Shape) -> TensorSpec:
        inferred = inferred if len(inferred) == len(tensor.axes) else tensor.axes
        named = (sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in tensor.axes)
        pairs = zip(named, inferred, strict=True)
        new_axes = (new if isinstance(axis, str) and isinstance(new, int) else axis for axis, new in pairs)
        return dataclasses.replace(tensor, axes=tuple(new_axes))

    return dataclasses.replace(
        spec,
        inputs=tuple(tensor if tensor.is_optional else fixed(tensor, ()) for tensor in spec.inputs),
        outputs=tuple(fixed(tensor, outputs.get(tensor.name) or ()) for tensor in spec.outputs),
    )


def _has_inputs(spec: GraphSpec, shapes: Mapping[str, Shape | None]) -> bool:
    def sizes(shape: Shape | None) -> list[int | None]:
        return [size if isinstance(size, int) else None for size in shape or ()]

    return all(sizes(tensor.axes) == sizes(shapes.get(tensor.name)) for tensor in spec.inputs)


def set_by_text(model: onnx.ModelProto, texts: Sequence[str]) -> onnx.ModelProto:
    """Apply `set_shapes`; `parse` reads each text."""
    parsed, inputs = dict(map(parse, texts)), Index(model).inputs
    if len(parsed) < len(texts):
        raise UsageError(f'{" ".join(texts)}: a name appears twice; name each input or axis once')
    axes = {name: shape[0] for name, shape in parsed.items() if name not in inputs and len(shape) == 1}
    return set_shapes(model, {name: shape for name, shape in parsed.items() if name not in axes}, axes)


def parse(text: str) -> tuple[str, list[int | str]]:
    """Parse 'images=1x3x640x640', 'images=batch,3,h,w' or 'batch=1'; else UsageError."""
    name, sign, sizes = text.rpartition('=')
    if not sign or not name or not sizes:
        raise UsageError(
            f'{text!r}: expected NAME=SIZES, e.g. images=1x3x640x640, images=batch,3,?,? or batch=1'
        )
    is_numeric = sizes.replace('x', '').replace(UNKNOWN, '').isdecimal() or set(sizes) <= {'x', UNKNOWN}
    words = sizes.split(',') if ',' in sizes or not is_numeric else sizes.split('x')
    if not all(word.strip() for word in words):
        raise UsageError(f'{text!r}: an axis is empty')
    words = [word.strip() for word in words]
    return name, [int(word) if word.removeprefix('-').isdecimal() else word for word in words]
