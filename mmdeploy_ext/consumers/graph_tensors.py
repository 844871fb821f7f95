"""The inputs and outputs of an ONNX file as a consumer binds them: names, sizes, types. Needs onnx."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.violations import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

Shape = tuple[int | None, ...]
"""Sizes of the axes; None for an axis that is not fixed. () is a scalar, or a tensor of unknown rank."""


@dataclasses.dataclass(frozen=True)
class GraphTensors:
    """Inputs and outputs of one file, in its order.

    Attributes:
        inputs, outputs: name -> shape; an initializer is no input.
        types: name -> type in ONNX's words, such as 'FLOAT'.
    """

    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    types: dict[str, str]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Name -> shape of both inputs and outputs."""
        return self.inputs | self.outputs


def graph_tensors(model: onnx.ModelProto) -> GraphTensors:
    """Return the inputs without an initializer and the outputs of a model."""
    from mmdeploy_ext.graph.io.types import type_name

    inputs, outputs = fed_inputs(model), list(model.graph.output)
    types = {value.name: type_name(value.type.tensor_type.elem_type) for value in [*inputs, *outputs]}
    return GraphTensors(
        {value.name: shape_of(value) for value in inputs},
        {value.name: shape_of(value) for value in outputs},
        types,
    )


def fed_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs of a model that have no initializer, in its order."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def shape_of(value: onnx.ValueInfoProto) -> Shape:
    """Return the sizes of the axes of an input or output, see `Shape`."""
    axes = value.type.tensor_type.shape.dim
    return tuple(axis.dim_value if axis.HasField('dim_value') else None for axis in axes)


def shape_text(shape: Shape) -> str:
    """Return a shape as messages have it, '1x?x3'; of () it is ''."""
    return 'x'.join('?' if size is None else str(size) for size in shape)


def weight_rules(file: str, model: onnx.ModelProto) -> Iterator[Violation]:
    """Yield a violation for each weight of a model that cannot be read, or of which a value is NaN.

    Weights are initializers and tensors in attributes, also of bodies and functions, without sparse ones and
    those whose values are in another file (external data). `file` is the name of the model's file, which a
    violation has as its `node`, with the name of the weight as its `attribute`.
    """
    from onnx import external_data_helper, numpy_helper

    from mmdeploy_ext.graph.io.index import all_tensors

    for tensor in all_tensors(model):
        if external_data_helper.uses_external_data(tensor):
            continue
        try:
            values = numpy_helper.to_array(tensor)
        except (KeyError, TypeError, ValueError) as error:
            problem = f'cannot be read: {type(error).__name__}: {error}'
            yield Violation(file, tensor.name, 'onnx', f'{file}: the weights of {tensor.name!r} {problem}')
            continue
        is_number = values.dtype.kind in 'fcV'  # V: types that numpy lacks, such as bfloat16
        if is_number and np.isnan(values).any():
            count = int(np.isnan(values).sum())
            message = f'{file}: {count} of {values.size} weights of {tensor.name!r} are not a number'
            yield Violation(file, tensor.name, 'not-finite', message)
