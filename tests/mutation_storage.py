"""Faults in how constants are stored: beside the file, in other fields, with other sizes, as other types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from mmdeploy_ext.graph.io.index import all_tensors
from mutation_kinds import constant_label
from mutation_sites import FLOATS, RESULT, SOURCE, NoSite

if TYPE_CHECKING:
    from collections.abc import Callable

    from mutation_sites import Draft

DATA = 'mutation.data'
"""File that holds a constant beside the graph."""


def stored(draft: Draft) -> tuple[str, str]:
    """Store a constant in another way, and wrongly."""
    detail = draft.pick(STORED)
    return STORED[detail](draft), detail


def _weight(draft: Draft) -> TensorProto:
    """Return an initializer of several floats."""
    inputs = {value.name for value in draft.main.input}
    return draft.pick(
        tensor
        for tensor in draft.main.initializer
        if tensor.data_type in FLOATS and np.prod(tensor.dims) > 1 and tensor.name not in inputs
    )


def _external(change: Callable[[Draft, bytes], tuple[bytes, dict[str, int]]]) -> Callable[[Draft], str]:
    """Return what stores a constant in a file beside the graph.

    Args:
        change: takes the draft and the right bytes; returns the content of the file, and 'offset' and
            'length' of the constant in it.
    """

    def store(draft: Draft) -> str:
        tensor = _weight(draft)
        raw = numpy_helper.to_array(tensor).tobytes()
        content, place = change(draft, raw)
        if content == raw:
            raise NoSite
        external_data_helper.set_external_data(tensor, DATA, **place)
        tensor.ClearField('raw_data'), tensor.ClearField('float_data')
        tensor.data_location = TensorProto.EXTERNAL
        draft.beside[DATA] = content
        return tensor.name

    return store


def _one_bit(draft: Draft, raw: bytes) -> tuple[bytes, dict[str, int]]:
    place = int(draft.pick(range(len(raw))))
    changed = bytearray(raw)
    changed[place] ^= 1 << int(draft.random.integers(8))
    return bytes(changed), dict(offset=0, length=len(raw))


def _shifted(draft: Draft, raw: bytes) -> tuple[bytes, dict[str, int]]:
    return bytes(8) + raw, dict(offset=4, length=len(raw))


def _other_order(draft: Draft, raw: bytes) -> tuple[bytes, dict[str, int]]:
    values = np.frombuffer(raw, np.uint8).reshape(-1, 4)[::-1]
    return values.tobytes(), dict(offset=0, length=len(raw))


def _cut(draft: Draft, raw: bytes) -> tuple[bytes, dict[str, int]]:
    return raw[:-4], dict(offset=0, length=len(raw))


def _in_typed_field(draft: Draft) -> str:
    """Keep values in the typed field, one of them rounded to float16."""
    tensor = _weight(draft)
    values = numpy_helper.to_array(tensor).astype(np.float32).ravel()
    rounded = values.astype(np.float16).astype(np.float32)
    place = draft.pick(np.flatnonzero((rounded != values) & np.isfinite(rounded)))
    values[place] = rounded[place]
    tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values))
    return tensor.name


def _sparse(draft: Draft) -> str:
    """Keep a weight as a sparse initializer that lacks one of its values."""
    tensor = _weight(draft)
    array = numpy_helper.to_array(tensor).ravel()
    places = np.flatnonzero(array)
    if len(places) < 2:
        raise NoSite
    places = np.delete(places, int(draft.pick(range(len(places)))))
    values = numpy_helper.from_array(array[places], tensor.name)
    indices = numpy_helper.from_array(places.astype(np.int64), draft.fresh('places'))
    draft.main.sparse_initializer.append(helper.make_sparse_tensor(values, indices, tensor.dims))
    name = tensor.name
    draft.main.initializer.remove(tensor)
    return name


def _constant_attribute(draft: Draft) -> str:
    """Keep a weight in a Constant node, moved by a unit in the last place."""
    tensor = _weight(draft)
    array = numpy_helper.to_array(tensor).copy()
    place = draft.pick(np.flatnonzero(np.isfinite(array) & (array != 0)))
    array.flat[place] = np.nextafter(array.flat[place], array.dtype.type(np.inf), dtype=array.dtype)
    name = tensor.name
    draft.main.initializer.remove(tensor)
    values = numpy_helper.from_array(array, f'{name}_values')
    draft.main.node.insert(
        0, helper.make_node('Constant', [], [name], name=draft.fresh('node'), value=values)
    )
    return name


STORED = {
    'beside the graph, one bit turned': _external(_one_bit),
    'beside the graph, four bytes further': _external(_shifted),
    'beside the graph, the values in reverse order': _external(_other_order),
    'beside the graph, the file too short': _external(_cut),
    'in the typed field, one value rounded to float16': _in_typed_field,
    'sparse, one value left out': _sparse,
    'in a Constant node, one unit in the last place off': _constant_attribute,
}


def shape(draft: Draft) -> tuple[str, str]:
    """Give a constant other sizes, its bytes as they are or turned with them."""
    tensor = draft.pick(
        tensor for tensor in all_tensors(draft.model) if tensor.data_type != TensorProto.STRING
    )
    sizes, label = list(tensor.dims), constant_label(draft, tensor)
    if draft.random.random() < 0.3 and len(sizes) > 1 and sizes[0] != sizes[1]:
        array = np.swapaxes(numpy_helper.to_array(tensor), 0, 1)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
        return label, f'{sizes} -> {list(array.shape)}, turned'
    new = draft.pick(other for other in _other_sizes(sizes) if other != sizes)
    del tensor.dims[:]
    tensor.dims.extend(new)
    return label, f'{sizes} -> {new}'


def _other_sizes(sizes: list[int]) -> list[list[int]]:
    """Return sizes of as many values."""
    others = [[1, *sizes], [*sizes, 1], sizes[::-1]]
    others += [[size for size in sizes if size != 1], [int(np.prod(sizes, dtype=np.int64))]]
    if len(sizes) > 1:
        others.append([sizes[0] * sizes[1], *sizes[2:]])
    return others


def other_type(draft: Draft) -> tuple[str, str]:
    """Compute or store something in another type."""
    return draft.pick((_weight_type, _computed_type, _end_type))(draft)


def _weight_type(draft: Draft) -> tuple[str, str]:
    """Keep a float32 weight in another type, and cast it."""
    tensor = _weight(draft)
    if tensor.data_type != TensorProto.FLOAT:
        raise NoSite
    kind = draft.pick((TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))
    array, name = numpy_helper.to_array(tensor), tensor.name
    stored_name = draft.fresh('weight')
    tensor.CopyFrom(
        helper.make_tensor(stored_name, kind, tensor.dims, array.astype(np.float64).ravel().tolist())
    )
    draft.main.node.insert(0, draft.node('Cast', [stored_name], name, to=TensorProto.FLOAT))
    return name, f'kept as {TensorProto.DataType.Name(kind)}'


def _computed_type(draft: Draft) -> tuple[str, str]:
    """Let a float32 tensor go through another type."""
    node, name = draft.pick(draft.float_outputs())
    if draft.elem_type(draft.main, name) != TensorProto.FLOAT:
        raise NoSite
    kind = draft.pick((TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT32, TensorProto.DOUBLE))
    there = draft.node('Cast', [SOURCE], to=kind)
    back = draft.node('Cast', list(there.output), RESULT, to=TensorProto.FLOAT)
    draft.after(name, [there, back])
    return f'{name} of {draft.label(draft.main, node)}', f'through {TensorProto.DataType.Name(kind)}'


def _end_type(draft: Draft) -> tuple[str, str]:
    """Let an input be of another type, cast to what the graph takes."""
    value = draft.pick(
        value for value in draft.main.input if draft.elem_type(draft.main, value.name) == TensorProto.FLOAT
    )
    if any(tensor.name == value.name for tensor in draft.main.initializer):
        raise NoSite
    kind = draft.pick((TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8))
    cast = draft.fresh('cast')
    for node in draft.main.node:
        node.input[:] = [cast if name == value.name else name for name in node.input]
    value.type.tensor_type.elem_type = kind
    draft.main.node.insert(0, draft.node('Cast', [value.name], cast, to=TensorProto.FLOAT))
    return value.name, f'is {TensorProto.DataType.Name(kind)}'
