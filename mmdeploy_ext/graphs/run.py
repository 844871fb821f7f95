"""Run a model in ONNX Runtime and read any of its tensors. Needs no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mmdeploy_ext.base.errors import ConfigError, InferenceError, ModelFileError, ShapeError, UsageError
from mmdeploy_ext.base.session_options import GRAPH_OPTIMIZATION
from mmdeploy_ext.graphs.io import files, types
from mmdeploy_ext.graphs.io.index import Index, did_you_mean
from mmdeploy_ext.graphs.part import part

if TYPE_CHECKING:
    import onnxruntime


# Inputs for a graph: random ones, and checks of given ones.


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


class Runner:
    """A model in one ONNX Runtime session that returns the tensors `names`, inner ones included."""

    def __init__(
        self,
        model: onnx.ModelProto,
        names: Sequence[str] | None = None,
        *,
        optimization: str = 'none',
        threads: int = 0,
    ) -> None:
        """Open the session, without the nodes that no name needs.

        - `names`: inputs, initializers or node outputs; None: the graph's outputs.
        - `optimization`: 'none' computes node by node; 'basic', 'extended', 'all' fuse nodes between the
          names.
        - `threads`: threads within an operator; 0: ONNX Runtime chooses.
        """
        check_optimization(optimization)
        self.index = index = Index(model)
        self.names = list(dict.fromkeys(index.outputs if names is None else names))
        for name in self.names:
            index.check_tensor(name)
        self._computed = [name for name in self.names if index.producer(name) is not None]
        self._session = None
        if self._computed:
            positions = index.ancestors(self._computed)
            used = {name for position in positions for name in index.reads(position)}
            inputs = [value for value in index.graph.input if value.name in used]
            typed_outputs = {value.name: value for value in index.graph.output}
            outputs = [typed_outputs.get(name) or onnx.ValueInfoProto(name=name) for name in self._computed]
            fed = [value for value in inputs if value.name not in index.constants]
            exposed = part(index, positions, fed, outputs)
            exposed.graph.input.extend(value for value in inputs if value.name in index.constants)
            self._needed = [value.name for value in exposed.graph.input]
            self._session = open_session(exposed, optimization, threads)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
        check_feeds(self.index, feeds)
        tensors = dict(feeds)
        if self._session is not None:
            needed = {name: feeds[name] for name in self._needed if name in feeds}
            try:
                computed = self._session.run(self._computed, needed)
            except Exception as error:
                raise InferenceError(f'ONNX Runtime failed to run the model: {error}') from error
            tensors.update(zip(self._computed, computed, strict=True))
        for name in self.names:
            if name not in tensors:
                tensors[name] = numpy_helper.to_array(self.index.constants[name])
        return {name: tensors[name] for name in self.names}

    def types(self) -> dict[str, onnx.TypeProto]:
        """Return name -> type of the computed tensors of `names`."""
        data_types, tensor_types = dict(onnx.TensorProto.DataType.items()), {}
        for output in self._session.get_outputs() if self._session else ():
            dtype = output.type.removeprefix('tensor(').removesuffix(')').upper()
            if dtype in data_types:
                tensor_types[output.name] = helper.make_tensor_type_proto(data_types[dtype], output.shape)
        return tensor_types


def run(
    model: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    names: Sequence[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    return Runner(model, names, **options).run(feeds)


def check_optimization(optimization: str) -> None:
    if optimization not in GRAPH_OPTIMIZATION:
        expected = ', '.join(GRAPH_OPTIMIZATION)
        raise ConfigError(f'optimization={optimization!r}: expected one of {expected}')


def open_session(model: onnx.ModelProto, optimization: str, threads: int) -> onnxruntime.InferenceSession:
    """Return a session of a model on the CPU."""
    import onnxruntime

    check_optimization(optimization)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    level = GRAPH_OPTIMIZATION[optimization]
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    with files.openable(model) as source:
        try:
            return onnxruntime.InferenceSession(source, options, providers=['CPUExecutionProvider'])
        except Exception as error:
            raise ModelFileError(f'ONNX Runtime cannot load the model: {error}') from error


def typed_values(index: Index, names: Sequence[str]) -> list[onnx.ValueInfoProto]:
    """Return typed declarations of tensors; UsageError if a type is unknown."""
    tensor_types = types.infer(index.model)
    computed = [name for name in names if name not in tensor_types and index.producer(name) is not None]
    if computed:
        with contextlib.suppress(ModelFileError):
            tensor_types.update(Runner(index.model, computed).types())
    untyped = [name for name in names if name not in tensor_types]
    if untyped:
        raise UsageError(
            f'the type of {untyped[0]!r} cannot be inferred; check that ONNX Runtime supports all '
            'operators before it'
        )
    return [onnx.ValueInfoProto(name=name, type=tensor_types[name]) for name in names]
