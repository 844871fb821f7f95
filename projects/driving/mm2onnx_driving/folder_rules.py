"""Rules of ONNX files in a folder that several programs share: tensors, weights, checkpoints. Needs onnx."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.typed_json import parse_json
from mmdeploy_ext.base.violations import WARNING, Violation
from mmdeploy_ext.spec.metadata import PREFIX, damaged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

Shape = tuple[int | None, ...]
"""Sizes of the axes; None for an axis that is not fixed."""


@dataclasses.dataclass(frozen=True)
class GraphTensors:
    """Inputs (without initializers) and outputs of one file, in order.

    Attributes:
        inputs, outputs: name -> shape.
        types: name -> ONNX's type, such as 'FLOAT'.
    """

    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    types: dict[str, str]

    @property
    def shapes(self) -> dict[str, Shape]:
        return self.inputs | self.outputs


def graph_tensors(model: onnx.ModelProto) -> GraphTensors:
    """Return a model's inputs without initializers, and outputs."""
    from mmdeploy_ext.graphs.io.types import type_name

    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    outputs = list(model.graph.output)
    types = {value.name: type_name(value.type.tensor_type.elem_type) for value in [*inputs, *outputs]}
    return GraphTensors(
        {value.name: shape_of(value) for value in inputs},
        {value.name: shape_of(value) for value in outputs},
        types,
    )


def shape_of(value: onnx.ValueInfoProto) -> Shape:
    axes = value.type.tensor_type.shape.dim
    return tuple(axis.dim_value if axis.HasField('dim_value') else None for axis in axes)


def shape_text(shape: Shape) -> str:
    """Return '1x?x3', or ''."""
    return 'x'.join('?' if size is None else str(size) for size in shape)


def expected_shape(axes: str, sizes: Mapping[str, Any]) -> Shape:
    """Return the shape for a word per axis."""
    words = axes.replace('+', '').split()
    return tuple(int(word) if word.isdigit() else sizes.get(word) for word in words)


def fits(shape: Shape, expected: Shape) -> bool:
    pairs = zip(shape, expected, strict=False)
    return len(shape) == len(expected) and all(None in pair or pair[0] == pair[1] for pair in pairs)


def node_cells(low: float, high: float, step: float) -> int:
    """Count cells between two bounds in metres as programs do: a truncated float32 quotient.

    Source: autoware_lidar_centerpoint centerpoint_config.hpp:95-102, bevdet_vendor src/bevdet.cpp.
    """
    return int((np.float32(high) - np.float32(low)) / np.float32(step))


def is_same(value: Any, expected: Any) -> bool:
    """Return whether settings agree, numbers within float32."""
    if isinstance(expected, list | tuple):
        is_list = isinstance(value, list) and len(value) == len(expected)
        return is_list and all(map(is_same, value, expected))
    if isinstance(expected, float | int) and isinstance(value, float | int):
        return bool(np.isclose(value, expected, rtol=1e-6))
    return value == expected


def weight_rules(file: str, model: onnx.ModelProto) -> Iterator[Violation]:
    """Yield a violation for each embedded weight with a NaN."""
    from onnx import external_data_helper, numpy_helper

    from mmdeploy_ext.graphs.io.index import all_tensors

    for tensor in all_tensors(model):
        if external_data_helper.uses_external_data(tensor):
            continue
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == 'f' and np.isnan(values).any():
            count = int(np.isnan(values).sum())
            message = f'{file}: {count} of {values.size} weights of {tensor.name!r} are not a number'
            yield Violation(file, tensor.name, 'not-finite', message)


def recorded(model: onnx.ModelProto, name: str) -> Any:
    """Return an entry of an export's metadata by dotted keys, or None."""
    entry, *keys = name.split('.')
    text = next((prop.value for prop in model.metadata_props if prop.key == f'{PREFIX}{entry}'), 'null')
    try:
        value = parse_json(text)
    except ValueError as error:
        raise damaged('a file of the folder', entry, f'is not JSON: {error}') from error
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def mixture_rules(models: Mapping[str, onnx.ModelProto]) -> Iterator[Violation]:
    """Yield a warning of the first file from another checkpoint."""
    hashes = {file: recorded(model, 'checkpoint_sha256') for file, model in models.items()}
    stated = [(file, text) for file, text in hashes.items() if text]
    for file, text in stated[1:]:
        first_file, first = stated[0]
        if text != first:
            message = f'{file} was exported from the checkpoint {text[:12]}, {first_file} from {first[:12]}'
            yield Violation(file, '', 'mixture', f'{message}: export both from one checkpoint', WARNING)
            return
