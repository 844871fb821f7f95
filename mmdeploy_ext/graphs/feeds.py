"""Inputs for a graph: random ones, and checks of given ones. Needs onnx and numpy only."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from mmdeploy_ext.base.errors import ShapeError, UsageError
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import Index, did_you_mean

DEFAULT_SIZE = 64
"""Size of a symbolic axis that was given none, except for the first axis of an input, which gets 1."""
INTEGER_END = 8
"""Random integers are below this."""


def check_feeds(index: Index, feeds: Mapping[str, np.ndarray]) -> None:
    """Raise ShapeError for a feed that is missing, unknown, or of another dtype, rank or fixed size."""
    values = {value.name: value for value in index.graph.input}
    missing = [name for name in index.inputs if name not in feeds]
    if missing:
        got = ', '.join(feeds) or 'none'
        raise ShapeError(f'no values for the inputs {", ".join(missing)} of the graph; got {got}')
    for name, array in feeds.items():
        if name not in values:
            raise ShapeError(f'feed {name!r}: the graph has no such input{did_you_mean(name, values)}')
        tensor_type = values[name].type.tensor_type
        if not tensor_type.elem_type:
            continue
        expected = helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
        if np.asarray(array).dtype != expected and expected != np.object_:
            raise ShapeError(f'feed {name!r}: is {array.dtype}, the graph expects {expected}')
        if not tensor_type.HasField('shape'):
            continue
        sizes = [size if isinstance(size, int) else '?' for size in types.shape(values[name].type)]
        pairs = zip(sizes, array.shape, strict=False)
        if len(sizes) != array.ndim or not all(size in ('?', actual) for size, actual in pairs):
            shapes = ['x'.join(map(str, shape)) for shape in (array.shape, sizes)]
            raise ShapeError(f'feed {name!r}: is {shapes[0]}, the graph expects {shapes[1]}')


def random_feeds(
    model: onnx.ModelProto, seed: int = 0, sizes: Mapping[str, int | Sequence[int]] | None = None
) -> dict[str, np.ndarray]:
    if seed < 0:
        raise UsageError(f'seed {seed}: expected 0 or more')
    sizes, index = dict(sizes or {}), Index(model)
    feeds, known_names = {}, set(index.inputs)
    for value in model.graph.input:
        if value.name not in index.inputs:
            continue
        tensor_type = value.type.tensor_type
        if not value.type.HasField('tensor_type') or not tensor_type.elem_type:
            raise UsageError(f'input {value.name!r} is not a tensor of a known dtype; pass a value for it')
        known_names.update(dim.dim_param for dim in tensor_type.shape.dim)
        if value.name in sizes and np.ndim(sizes[value.name]):
            shape = [int(size) for size in sizes[value.name]]
        else:
            shape = [
                dim.dim_value
                if dim.HasField('dim_value') and dim.dim_value >= 0
                else int(sizes.get(dim.dim_param, DEFAULT_SIZE if axis else 1))
                for axis, dim in enumerate(tensor_type.shape.dim)
            ]
        rng = np.random.default_rng([seed, *value.name.encode()])
        feeds[value.name] = _random_array(tensor_type.elem_type, shape, rng)
    unknown = [name for name in sizes if name not in known_names]
    if unknown:
        raise UsageError(
            f'sizes for {", ".join(unknown)}: not an axis or input of the model; it has '
            f'{", ".join(sorted(known_names - {""}))}'
        )
    return feeds


def _random_array(element: int, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    dtype = helper.tensor_dtype_to_np_dtype(element)
    if element == onnx.TensorProto.STRING:
        return np.full(shape, 'text', np.object_)
    if dtype.kind == 'b':
        return rng.random(shape) < 0.5
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, dtype)
    if 'int' in dtype.name:  # int4, too, whose kind is not 'i'
        return rng.integers(0, INTEGER_END, shape).astype(dtype)
    return np.asarray(rng.standard_normal(shape)).astype(dtype)
