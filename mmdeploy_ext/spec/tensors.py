"""The contract of a graph: names, dtypes, axes, state pairs, tolerances; and its modules."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from mmdeploy_ext.base.errors import ShapeError, shape_text
from mmdeploy_ext.base.typed_json import JsonDataclass, optional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx
    import torch


DEFAULT_RTOL = 1e-4
"""Tolerance relative to a column group's largest absolute reference value."""
VALID = 'valid'
"""Output (B,) bool of a traced test path: whether what the graph holds of its example is true of it."""


@dataclasses.dataclass(frozen=True)
class ColumnGroup:
    """Columns (last axis) of a tensor with a common unit and scale.

    Attributes:
        columns: indices along the last axis; None: all.
        unit: e.g. 'logit', 'pixel' or 'm'; '' for a ratio.
        rtol: tolerance of floats relative to the group's largest absolute reference value.
        atol: absolute tolerance in `unit`; for floats the larger tolerance counts.
    """

    name: str = ''
    columns: tuple[int, ...] | None = None
    unit: str = ''
    rtol: float = DEFAULT_RTOL
    atol: float = 0.0


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Pixels of a uint8 input, normalised in the graph.

    Attributes:
        mean, std: per network channel; normalised = (pixel - mean) / std.
        swapped: the input has the network's channels reversed.
        last: the channels are the last axis.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    swapped: bool = False
    last: bool = False

    def of_normalised(self, images: np.ndarray) -> np.ndarray:
        """Input for normalised images (B, C, H, W); exact if they come from pixels."""
        mean, std = (np.array(values)[:, None, None] for values in (self.mean, self.std))
        pixels = np.rint(images * std + mean).clip(0, 255).astype(np.uint8)
        pixels = pixels[:, ::-1] if self.swapped else pixels
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1) if self.last else pixels)

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """Images (B, C, H, W) float32 as in the graph; padding is not filled."""
        images = pixels.transpose(0, 3, 1, 2) if self.last else pixels
        images = images[:, ::-1] if self.swapped else images
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) * (1 / std)


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One named tensor of a graph.

    Attributes:
        name: ONNX name; names are API.
        dtype: numpy name of the element type.
        axes: int for a fixed axis, name (B, H, W, ...) for a dynamic one.
        meaning: one sentence.
        unit: of all values, or ''.
        groups: column groups for all columns; () is one group with the default tolerance.
        default: fill value of an optional input (an initializer); None if required.
        unused: no operator reads the input.
        compare: 'values', or 'detections' for outputs matched as results.
        single: stays float32 in float16 exports: points, poses, times, inputs of top-k.
        smallest: minimum of axes from the third on (height, width).
        multiple: these sizes are multiples of it.
        positive: input values are above zero.
        pixels: normalisation of a uint8 image input.
        required: not an initializer despite its default; `Backend.infer` feeds it.
        score_column: column that sorts an output's rows (B, n), with `labels` (B, n) as another output; 0
            without columns; see `SCORE_COLUMNS`.
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
    pixels: Pixels | None = optional()
    required: bool = optional(False)
    score_column: int | None = optional()

    @property
    def column_groups(self) -> tuple[ColumnGroup, ...]:
        return self.groups or (ColumnGroup(unit=self.unit),)

    @property
    def dynamic_axes(self) -> dict[int, str]:
        return {index: axis for index, axis in enumerate(self.axes) if isinstance(axis, str)}

    @property
    def is_optional(self) -> bool:
        return self.default is not None and not self.required

    @property
    def sides(self) -> tuple[int, ...]:
        """Indices of the height and width axes of an image input."""
        return (1, 2) if self.pixels is not None and self.pixels.last else tuple(range(2, len(self.axes)))

    def shape_text(self) -> str:
        return shape_text(self.axes)


SCORE_COLUMNS = dict(dets=-1, scores=0)
"""Outputs that need no `score_column`."""


@dataclasses.dataclass(frozen=True)
class GraphSpec(JsonDataclass):
    """Inputs, outputs and state of a graph.

    Attributes:
        name: e.g. 'dense/full'.
        state: (output, input of the next step) pairs.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[tuple[str, str], ...] = ()

    @property
    def input_names(self) -> list[str]:
        return [tensor.name for tensor in self.inputs]

    @property
    def output_names(self) -> list[str]:
        return [tensor.name for tensor in self.outputs]

    def score_columns(self) -> dict[str, int]:
        """Sorted outputs -> their score column, explicit ones first."""
        told = {tensor.name: tensor.score_column for tensor in self.outputs}
        return {name: column for name, column in told.items() if column is not None} | SCORE_COLUMNS

    def tensor(self, name: str) -> TensorSpec:
        """Tensor by name; ShapeError lists the names."""
        for tensor in (*self.inputs, *self.outputs):
            if tensor.name == name:
                return tensor
        raise ShapeError(f'{name!r} is not a tensor of {self.name}: {self.input_names + self.output_names}')

    def rounded(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Cast float32 feeds of float16 inputs; normalised images become pixels for uint8 inputs."""
        float16_inputs = {tensor.name for tensor in self.inputs if tensor.dtype == 'float16'}
        rounded = {
            name: array.astype(np.float16) if name in float16_inputs and array.dtype == np.float32 else array
            for name, array in feeds.items()
        }
        for tensor in self.inputs:
            if tensor.pixels is not None and getattr(feeds.get(tensor.name), 'dtype', None) == np.float32:
                rounded[tensor.name] = tensor.pixels.of_normalised(feeds[tensor.name])
        return rounded

    def normalised(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pixels of uint8 inputs as normalised images (B, C, H, W) for runtimes."""
        images = dict(feeds)
        for tensor in self.inputs:
            if tensor.pixels is not None and getattr(feeds.get(tensor.name), 'dtype', None) == np.uint8:
                images[tensor.name] = tensor.pixels.normalised(feeds[tensor.name])
        return images

    def with_required(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add defaults of `required` inputs."""
        required = {tensor.name for tensor in self.inputs if tensor.required}
        if required <= feeds.keys():
            return dict(feeds)
        complete = self.with_defaults(feeds)
        return {name: array for name, array in complete.items() if name in feeds or name in required}

    def with_defaults(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add defaults of optional inputs; dynamic axes take sizes of the same name in the feeds, else 1."""
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
        """Raise ShapeError for wrong feeds, the same on every engine."""
        names = self.input_names
        if unknown := [name for name in feeds if name not in names]:
            raise ShapeError(
                f'{unknown[0]!r} is not an input of {self.name}; its inputs are {", ".join(names)}'
            )
        sizes: dict[str, tuple[str, int]] = {}
        for tensor in self.inputs:
            if tensor.name in feeds:
                _check_array(tensor, feeds[tensor.name], sizes)
            elif not tensor.is_optional:
                takes = f'{tensor.dtype} {tensor.shape_text()}'
                raise ShapeError(f'input {tensor.name!r} of {self.name} is missing; expected {takes}')


def _check_array(tensor: TensorSpec, array: np.ndarray, sizes: dict[str, tuple[str, int]]) -> None:
    expected = f'{tensor.dtype} {tensor.shape_text()}'
    shape, prefix = 'x'.join(map(str, array.shape)), f'input {tensor.name!r}: got'
    if array.dtype != np.dtype(tensor.dtype):
        raise ShapeError(f'{prefix} {array.dtype} {shape}, expected {expected}')
    if array.ndim != len(tensor.axes):
        raise ShapeError(f'{prefix} shape {shape} with {array.ndim} axes, expected {expected}')
    if tensor.positive and not (array > 0).all():
        raise ShapeError(f'{prefix} {array.min()}, expected positive numbers ({tensor.meaning})')
    prefix = f'{prefix} shape {shape},'
    if tensor.axes[:1] == ('B',) and not array.shape[0]:  # every engine fails in its own way
        raise ShapeError(f'{prefix} an empty batch; expected {expected} with at least one image')
    sides = [array.shape[place] for place in tensor.sides]
    if any(size < tensor.smallest or size % tensor.multiple for size in sides):
        multiple = f' and a multiple of {tensor.multiple}' if tensor.multiple > 1 else ''
        raise ShapeError(
            f'{prefix} expected {expected}; height and width must be at least '
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
    """Contract of an image model with float16 images and features, for `--fp16-io`.

    float32 inputs of four axes and outputs compared by value become float16. Pixels and detections stay
    float32, since float16 rounds to half a pixel from 512 on.
    """
    inputs = tuple(as_float16(tensor) if len(tensor.axes) == 4 else tensor for tensor in spec.inputs)
    outputs = []
    for tensor in spec.outputs:
        units = {group.unit for group in tensor.column_groups} | {tensor.unit}
        is_feature = tensor.compare == 'values' and 'pixel' not in units
        outputs.append(as_float16(tensor) if is_feature else tensor)
    return dataclasses.replace(spec, inputs=inputs, outputs=tuple(outputs))


def as_float16(tensor: TensorSpec) -> TensorSpec:
    """float32 becomes float16, even if `single`."""
    return dataclasses.replace(tensor, dtype='float16') if tensor.dtype == 'float32' else tensor


def written_precision(model: onnx.ModelProto) -> str:
    """'fp16' or 'bf16' if an initializer, constant or Cast is, even in bodies and functions; else 'fp32'."""
    from onnx import TensorProto

    lower = {TensorProto.FLOAT16: 'fp16', TensorProto.BFLOAT16: 'bf16'}
    bodies, elements = [model.graph, *model.functions], set()
    for body in bodies:  # grows
        elements.update(tensor.data_type for tensor in getattr(body, 'initializer', ()))
        for node in body.node:
            for entry in node.attribute:
                if node.op_type == 'Cast' and entry.name == 'to':
                    elements.add(entry.i)
                bodies += [entry.g] if entry.HasField('g') else entry.graphs
                elements.update([entry.t.data_type] if entry.HasField('t') else ())
    return next((name for element, name in lower.items() if element in elements), 'fp32')


@dataclasses.dataclass(frozen=True)
class Stage:
    """One module of a graph's chain; stages are exported separately and merged by tensor names.

    Attributes:
        name: prefix, before '/', of its nodes and inner tensors.
        module: positional tensors -> tensor or tuple; call `eval()` before an export.
        inputs: graph inputs, or outputs of earlier stages.
        exporter: 'torchscript' or 'dynamo' if required; '': the user's choice.
        passes: model -> (model, changed), run after the merge.
        varying: outputs for later stages with one row (axis 1) per result; dynamic.
        operators: see `upstream.operators.operator.operators_as`; '' is the export's form.
        each_image: exported for one image, and run for each image of a batch; its outputs have constant rows.
    """

    name: str
    module: torch.nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    exporter: str = ''
    passes: tuple[Callable[[onnx.ModelProto], tuple[onnx.ModelProto, bool]], ...] = ()
    varying: tuple[str, ...] = ()
    operators: str = ''
    each_image: bool = False


@dataclasses.dataclass(frozen=True)
class Graph:
    """One graph of a model before its export.

    Attributes:
        name: `form` in metadata and file stem, e.g. 'pts_head_memory'.
        module: positional inputs of the spec -> tuple of its outputs; None with `model` or `make`.
        example: input -> traced tensor; {} if samples are traced.
        model: finished graph that torch cannot export.
        make: builds the stages, instead of `module`.
    """

    name: str
    module: torch.nn.Module | None
    spec: GraphSpec
    example: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    model: onnx.ModelProto | None = None
    make: Callable[[], Sequence[Stage]] | None = None

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        if self.make is not None:
            return tuple(self.make())
        if self.module is None:
            return ()
        return (Stage('', self.module, tuple(self.spec.input_names), tuple(self.spec.output_names)),)
