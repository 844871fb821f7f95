"""What readers of folders share: the inputs and outputs of a file as a consumer binds them. Needs onnx."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

Shape = tuple[int | None, ...]
"""None for axes that are not fixed."""


@dataclasses.dataclass(frozen=True)
class Ends:
    """Inputs and outputs of one file, in its order, and their types in ONNX's words, such as 'FLOAT'."""

    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    kinds: dict[str, str]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of both sides, by name."""
        return self.inputs | self.outputs


def given_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that have no initializer."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def ends_of(model: onnx.ModelProto) -> Ends:
    """Return what a model takes and gives; an initializer is no input."""
    from mmdeploy_ext.graph.io.types import type_name

    sides = given_inputs(model), list(model.graph.output)
    kinds = {value.name: type_name(value.type.tensor_type.elem_type) for side in sides for value in side}
    return Ends(*({value.name: shape_of(value) for value in side} for side in sides), kinds)


def shape_of(value: onnx.ValueInfoProto) -> Shape:
    """Return the axes of an input or output; None where one is not fixed."""
    axes = value.type.tensor_type.shape.dim
    return tuple(axis.dim_value if axis.HasField('dim_value') else None for axis in axes)


def shape_text(shape: Shape) -> str:
    """Return a shape as messages have it, 1x?x3."""
    return 'x'.join('?' if size is None else str(size) for size in shape)
