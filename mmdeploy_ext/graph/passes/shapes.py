"""Other shapes for the inputs of a graph: axes fixed, or opened."""

import copy
from collections.abc import Mapping, Sequence

import onnx

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.checks import check_ordinary
from mmdeploy_ext.graph.io.index import Index, bodies, did_you_mean

UNKNOWN = '?'
Shapes = Mapping[str, Sequence[int | str] | None]


def set_shapes(
    model: onnx.ModelProto,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    axes: Mapping[str, int | str] | None = None,
) -> onnx.ModelProto:
    """Return a model whose inputs have other shapes, all types inside and the outputs inferred anew.

    - `axes` gives a named axis a size (or another name) wherever an input has it.
    - `shapes` states the whole shape of an input: sizes, names of axes, or '?' for an axis without a name.
      Names open an axis that was fixed.
    Does not fire when all inputs have these shapes already. Sizes that are baked into constants stay: a graph
    that was traced at one size may have an open axis and still run at that size only (`trial` in the command
    finds that out).

    Raises:
        UsageError: no such input or axis, another rank, a size below 1.
        ModelFileError: the shapes do not fit the nodes; names the node.
    """
    check_ordinary(model)
    shapes, axes, index = dict(shapes or {}), dict(axes or {}), Index(model)
    result = copy.deepcopy(model)
    inputs = {value.name: value for value in result.graph.input if value.name in index.inputs}
    _check_names(inputs, shapes, axes)
    before = types.shapes(inputs.values())
    for value in inputs.values():
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in axes:
                _set(size, axes[size.dim_param])
        if value.name in shapes:
            _set_all(value, shapes[value.name])
    after = types.shapes(inputs.values())
    if before != after:
        _propagate(result, {**_renamed(before, after), **axes})
    return result


def _renamed(before: Shapes, after: Shapes) -> dict[str, int | str]:
    """Return name of an axis -> what stands there now; nothing for a name that became several things."""
    found: dict[str, set[int | str]] = {}
    for name, shape in before.items():
        for old, new in zip(shape or (), after[name] or (), strict=False):
            if isinstance(old, str) and old != UNKNOWN:
                found.setdefault(old, set()).add(new)
    return {name: next(iter(new)) if len(new) == 1 else UNKNOWN for name, new in found.items()}


def _check_names(
    inputs: Mapping[str, onnx.ValueInfoProto],
    shapes: Mapping[str, Sequence[int | str]],
    axes: Mapping[str, int | str],
) -> None:
    for name in (name for name in shapes if name not in inputs):
        raise UsageError(
            f'{name!r} is not an input of the graph{did_you_mean(name, inputs)}; it has {", ".join(inputs)}'
        )
    sizes = [size for value in inputs.values() for size in value.type.tensor_type.shape.dim]
    there = {size.dim_param for size in sizes} - {''}
    for name in (name for name in axes if name not in there):
        have = ', '.join(sorted(there)) or 'none'
        raise UsageError(f'{name!r} is not a named input axis{did_you_mean(name, there)}; there are: {have}')
    for name, size in [*axes.items(), *((name, size) for name, sizes in shapes.items() for size in sizes)]:
        if isinstance(size, int) and size < 1:
            raise UsageError(f'{name}={size}: a size is at least 1')


def _set_all(value: onnx.ValueInfoProto, sizes: Sequence[int | str]) -> None:
    kind = value.type.tensor_type
    if kind.HasField('shape') and len(kind.shape.dim) != len(sizes):
        raise UsageError(
            f'{value.name}={"x".join(map(str, sizes))}: has {len(sizes)} axes, the input has '
            f'{len(kind.shape.dim)} ({types.text(value.type)})'
        )
    _set_sizes(value, sizes)


def _set_sizes(value: onnx.ValueInfoProto, sizes: Sequence[int | str]) -> None:
    value.type.tensor_type.shape.ClearField('dim')
    for size in sizes:
        _set(value.type.tensor_type.shape.dim.add(), size)


def _set(dim: onnx.TensorShapeProto.Dimension, size: int | str) -> None:
    if isinstance(size, int):
        dim.dim_value = size
    elif size == UNKNOWN:
        dim.ClearField('value')
    else:
        dim.dim_param = size


def _propagate(model: onnx.ModelProto, axes: Mapping[str, int | str]) -> None:
    """Infer all types anew; outputs keep the names of axes whose size cannot be told."""
    graph = model.graph
    stated = types.shapes(graph.output)
    for outdated in (graph, *(body for node in graph.node for body in bodies(node))):
        outdated.ClearField('value_info')
    for value in graph.output:
        if value.type.HasField('tensor_type'):
            value.type.tensor_type.ClearField('shape')
    found = types.infer(model, strict=True)
    for value in graph.output:
        kept = _merged(stated[value.name], types.shape(found.get(value.name)), axes)
        if kept is not None:
            _set_sizes(value, kept)
    inner = {name for node in graph.node for name in node.output} - stated.keys()
    graph.value_info.extend(
        onnx.ValueInfoProto(name=name, type=kind) for name, kind in found.items() if name in inner
    )


def _merged(
    stated: list[int | str] | None, inferred: list[int | str] | None, axes: Mapping[str, int | str]
) -> list[int | str] | None:
    """Return the shape of an output: what was inferred; a name that it had where that tells nothing.

    A size that was fixed before and cannot be inferred now may depend on an axis that was opened: it is left
    open.
    """
    if inferred is None:
        return None if stated is None else [_kept(size, axes) for size in stated]
    if stated is None or len(stated) != len(inferred):
        return [size if isinstance(size, int) else UNKNOWN for size in inferred]
    return [_kept(old, axes) if new == UNKNOWN else new for old, new in zip(stated, inferred, strict=True)]


def _kept(size: int | str, axes: Mapping[str, int | str]) -> int | str:
    return UNKNOWN if isinstance(size, int) else axes.get(size, size)


def set_by_text(model: onnx.ModelProto, texts: Sequence[str]) -> onnx.ModelProto:
    """Return `set_shapes` of shapes as `parse` reads them; a name is an input's, or an axis's."""
    found, inputs = dict(map(parse, texts)), Index(model).inputs
    axes = {name: sizes[0] for name, sizes in found.items() if name not in inputs and len(sizes) == 1}
    return set_shapes(model, {name: sizes for name, sizes in found.items() if name not in axes}, axes)


def parse(text: str) -> tuple[str, list[int | str]]:
    """Return name and sizes of 'images=1x3x640x640', 'images=batch,3,h,w' or 'batch=1'; else UsageError."""
    name, sign, written = text.rpartition('=')
    if not sign or not name or not written:
        raise UsageError(
            f'{text!r}: expected NAME=SIZES, e.g. images=1x3x640x640, images=batch,3,?,? or batch=1'
        )
    digits = written.replace('x', '').replace(UNKNOWN, '').isdigit() or set(written) <= {'x', UNKNOWN}
    words = written.split(',') if ',' in written or not digits else written.split('x')
    if not all(word.strip() for word in words):
        raise UsageError(f'{text!r}: an axis is empty')
    return name, [int(word) if word.strip().lstrip('-').isdigit() else word.strip() for word in words]
