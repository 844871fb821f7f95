"""The contract of a graph: names, dtypes, axes, meaning, state pairs, tolerances; and modules that keep it.

A model family states it once, mostly in its `graphs.py`; export, dump, backends, verification, the report
and the tables in the READMEs read this one object. Needs numpy only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from mmdeploy_ext.core.errors import ShapeError, shape_text
from mmdeploy_ext.core.typed_json import JsonDataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx
    import torch


DEFAULT_RTOL = 1e-4
"""Tolerance relative to the largest absolute reference value of a column group."""


@dataclasses.dataclass(frozen=True)
class ColumnGroup:
    """Columns (last axis) of a tensor that share a unit and therefore a scale.

    Attributes:
        name: what the columns are in words, e.g. 'size', for the table of the verdict.
        columns: their indices along the last axis; None: all of them.
        unit: of the values, e.g. 'logit', 'pixel' or 'm'; '' for a ratio.
        rtol: tolerance of floats, relative to the group's largest absolute reference value; it does not count
            for whole numbers and booleans.
        atol: absolute tolerance in `unit`, also of whole numbers and booleans; of floats the larger of both
            counts.
    """

    name: str = ''
    columns: tuple[int, ...] | None = None
    unit: str = ''
    rtol: float = DEFAULT_RTOL
    atol: float = 0.0


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One named tensor of a graph.

    Attributes:
        name: its ONNX name. Names are API.
        dtype: numpy name of the element type.
        axes: an int for a fixed axis, a name for a dynamic one, mostly a letter (B, H, W, ...).
        meaning: one sentence of documentation.
        unit: unit of all values, when there is only one.
        groups: column groups with their tolerances, which together have to cover all columns: one that no
            group has fails a comparison. Empty means one group of all columns with the default tolerance.
        default: fill value of an optional input (an ONNX input with an initializer); None for a required one.
        unused: whether it is an input that no operator uses, and that stays in the signature.
        compare: 'values' for element-wise comparison; 'detections' for every output of results, such as
            boxes, labels, scores, masks, maps and counts: the results decoded from all of them are matched.
        single: whether it is of single precision, float32, in a float16 export, too, as are the nodes between
            it and the next layers with weights: points, poses, times, and what a top-k sorts.
        smallest: minimum size of the axes from the third on (images: height and width).
        multiple: number that these sizes have to be multiples of.
        positive: whether the values of this input have to be larger than zero (sizes).
    """

    name: str
    dtype: str
    axes: tuple[int | str, ...]
    meaning: str = ''
    unit: str = ''
    groups: tuple[ColumnGroup, ...] = ()
    default: float | None = None
    unused: bool = False
    compare: Literal['values', 'detections'] = 'values'
    single: bool = False
    smallest: int = 1
    multiple: int = 1
    positive: bool = False

    @property
    def column_groups(self) -> tuple[ColumnGroup, ...]:
        """The groups to compare by; never empty."""
        return self.groups or (ColumnGroup(unit=self.unit),)

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """Axis index -> name of the dynamic axes."""
        return {index: axis for index, axis in enumerate(self.axes) if isinstance(axis, str)}

    def shape_text(self) -> str:
        """Return the axes as text, '1x3xHxW'."""
        return shape_text(self.axes)


@dataclasses.dataclass(frozen=True)
class GraphSpec(JsonDataclass):
    """Inputs and outputs of a graph in order, and which output feeds which input of the next step.

    Attributes:
        name: the graph, e.g. 'dense/full'.
        inputs: inputs in the order of the exported module's arguments.
        outputs: outputs in order.
        state: (output name, input name) pairs of a stateful model: the output of a step is the input of the
            next. What the first step gets is decided by the family's runtime.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[tuple[str, str], ...] = ()

    @property
    def input_names(self) -> list[str]:
        """Names of all inputs."""
        return [tensor.name for tensor in self.inputs]

    @property
    def output_names(self) -> list[str]:
        """Names of all outputs."""
        return [tensor.name for tensor in self.outputs]

    def tensor(self, name: str) -> TensorSpec:
        """Return the tensor called `name`; ShapeError names the ones that exist."""
        for tensor in (*self.inputs, *self.outputs):
            if tensor.name == name:
                return tensor
        raise ShapeError(f'{name!r} is not a tensor of {self.name}: {self.input_names + self.output_names}')

    def rounded(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return feeds (input name -> array) in which float32 arrays for float16 inputs are float16."""
        float16_inputs = {tensor.name for tensor in self.inputs if tensor.dtype == 'float16'}
        return {
            name: array.astype(np.float16) if name in float16_inputs and array.dtype == np.float32 else array
            for name, array in feeds.items()
        }

    def with_defaults(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return feeds (input name -> array) completed by the defaults of optional inputs that are not fed.

        Dynamic axes of a default have the sizes of the axes with the same name in the feeds, else 1.
        """
        sizes = {
            letter: feeds[tensor.name].shape[axis]
            for tensor in self.inputs
            if tensor.name in feeds
            for axis, letter in tensor.dynamic_axes.items()
        }
        complete = dict(feeds)
        for tensor in self.inputs:
            if tensor.name not in feeds and tensor.default is not None:
                shape = [axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in tensor.axes]
                complete[tensor.name] = np.full(shape, tensor.default, tensor.dtype)
        return complete

    def check_feeds(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Refuse feeds (input name -> array) that the graph does not take, the same way on every engine.

        Raises:
            ShapeError: a required input is missing, an unknown one is given, dtype or shape differ, a batch
                is empty, a size is too small or no multiple of what the tensor states, dynamic axes of one
                name have two sizes, or values of an input of positive numbers are not positive.
        """
        names = self.input_names
        if unknown := [name for name in feeds if name not in names]:
            raise ShapeError(
                f'{unknown[0]!r} is not an input of {self.name}; its inputs are {", ".join(names)}'
            )
        sizes: dict[str, tuple[str, int]] = {}
        for tensor in self.inputs:
            if tensor.name in feeds:
                _check_array(tensor, feeds[tensor.name], sizes)
            elif tensor.default is None:
                takes = f'{tensor.dtype} {tensor.shape_text()}'
                raise ShapeError(f'input {tensor.name!r} of {self.name} is missing; it takes {takes}')


def _check_array(tensor: TensorSpec, array: np.ndarray, sizes: dict[str, tuple[str, int]]) -> None:
    """Refuse an array of another dtype or shape than its tensor.

    `sizes` has the size of each dynamic axis so far, and the input that it was read from: letter ->
    (input name, size).
    """
    expected = f'{tensor.dtype} {tensor.shape_text()}'
    shape, prefix = 'x'.join(map(str, array.shape)), f'input {tensor.name!r}: got'
    if array.dtype != np.dtype(tensor.dtype):
        raise ShapeError(f'{prefix} {array.dtype} {shape}, expected {expected}')
    if array.ndim != len(tensor.axes):
        raise ShapeError(f'{prefix} shape {shape} with {array.ndim} axes, expected {expected}')
    if tensor.positive and not (array > 0).all():
        raise ShapeError(f'{prefix} {array.min()}, expected positive numbers ({tensor.meaning})')
    prefix = f'{prefix} shape {shape},'
    if tensor.axes[:1] == ('B',) and not array.shape[0]:  # at which every engine fails in its own way
        raise ShapeError(f'{prefix} a batch of no images; expected {expected} of 1 or more')
    if any(size < tensor.smallest or size % tensor.multiple for size in array.shape[2:]):
        multiple = f' and a multiple of {tensor.multiple}' if tensor.multiple > 1 else ''
        raise ShapeError(
            f'{prefix} expected {expected}; height and width have to be at least '
            f'{tensor.smallest}{multiple} (resize the image, or pad it where the test pipeline pads)'
        )
    for axis, size in zip(tensor.axes, array.shape, strict=True):
        if isinstance(axis, int) and axis != size:
            raise ShapeError(
                f'{prefix} expected {expected} (a fixed shape: resize and pad to it, or export with '
                f'--dynamic-export)'
            )
        if isinstance(axis, str) and sizes.setdefault(axis, (tensor.name, size))[1] != size:
            other_name, other_size = sizes[axis]
            raise ShapeError(f'{prefix} but {axis} is {other_size} in {other_name!r}')


def with_half_features(spec: GraphSpec) -> GraphSpec:
    """Return `spec`, the contract of an image model, with float16 images and features, for `--fp16-io`.

    Float32 inputs of four axes become float16; others are sizes, ratios, regions and cameras. So do float32
    outputs that are compared value by value (`compare='values'`) and have no unit of pixels. Pixels stay
    float32, since float16 rounds to half a pixel from 512 on, and so do detections, which are computed in
    float32. `single` is not looked at: of image models it marks inputs of fewer axes alone.
    """
    inputs = tuple(as_float16(tensor) if len(tensor.axes) == 4 else tensor for tensor in spec.inputs)
    outputs = []
    for tensor in spec.outputs:
        units = {group.unit for group in tensor.column_groups} | {tensor.unit}
        is_feature = tensor.compare == 'values' and 'pixel' not in units
        outputs.append(as_float16(tensor) if is_feature else tensor)
    return dataclasses.replace(spec, inputs=inputs, outputs=tuple(outputs))


def as_float16(tensor: TensorSpec) -> TensorSpec:
    """Return the spec of a tensor in which float32 is float16, also if it is marked `single`."""
    return dataclasses.replace(tensor, dtype='float16') if tensor.dtype == 'float32' else tensor


def written_precision(model: onnx.ModelProto) -> str:
    """Return the precision that `model` was written in: 'fp16' or 'fp32'.

    It is 'fp16' if an initializer or a constant is float16, or a Cast goes to float16, also in the bodies of
    nodes (If, Loop) and of functions; types of inputs and outputs do not count.
    """
    from onnx import TensorProto

    bodies = [model.graph, *model.functions]
    tensors = []
    for body in bodies:  # grows
        tensors += getattr(body, 'initializer', ())  # functions have none
        for node in body.node:
            for entry in node.attribute:
                if node.op_type == 'Cast' and entry.name == 'to' and entry.i == TensorProto.FLOAT16:
                    return 'fp16'
                bodies += [entry.g] if entry.HasField('g') else entry.graphs
                tensors += [entry.t] if entry.HasField('t') else ()
    return 'fp16' if any(tensor.data_type == TensorProto.FLOAT16 for tensor in tensors) else 'fp32'


@dataclasses.dataclass(frozen=True)
class Stage:
    """One module of the chain that a graph is made of.

    Each is exported by itself; the graphs are merged by the names of tensors.

    Attributes:
        name: what stands with a '/' before the names of its nodes and inner tensors in the merged graph; ''
            for the '/' alone.
        module: takes its inputs as positional tensors, returns a tensor or a tuple of tensors; call `eval()`
            on it before an export.
        inputs: names of its inputs: graph inputs or outputs of an earlier stage.
        outputs: names of its outputs.
        exporter: 'torchscript' or 'dynamo' if the stage needs that one; '' takes the user's choice.
        passes: model -> (model, whether it changed), which run on the graph of all stages after the merge.
        varying: outputs that a later stage takes, with as many rows (axis 1) as there are results; this axis
            is dynamic even in a graph of a fixed size.
        operators: form in which registered operators are written, see `exporting.ops.operator.operators_as`;
            '' for the form that is chosen around the export.
    """

    name: str
    module: torch.nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    exporter: str = ''
    passes: tuple[Callable[[onnx.ModelProto], tuple[onnx.ModelProto, bool]], ...] = ()
    varying: tuple[str, ...] = ()
    operators: str = ''


@dataclasses.dataclass(frozen=True)
class Graph:
    """One graph of a model, before it is exported.

    Attributes:
        name: the metadata's `form`; file stem in a folder of graphs, e.g. 'pts_head_memory'.
        module: takes the spec's inputs as positional tensors, returns a tuple in the order of its outputs;
            None if there is a `model`, or if `make` gives the modules.
        spec: its contract.
        example: input name -> tensor that is traced; empty if samples are traced, or if there is a `model`.
        model: the finished graph of a part that no exporter of torch can trace, which counts in place of all
            modules; or None.
        make: returns the chain of modules that the graph is made of, which then counts in place of `module`;
            None if there is no such chain.
    """

    name: str
    module: torch.nn.Module | None
    spec: GraphSpec
    example: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    model: onnx.ModelProto | None = None
    make: Callable[[], Sequence[Stage]] | None = None

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Return the chain of modules; it is empty for a finished graph."""
        if self.make is not None:
            return tuple(self.make())
        if self.module is None:
            return ()
        return (Stage('', self.module, tuple(self.spec.input_names), tuple(self.spec.output_names)),)
