"""Models that one protobuf message cannot hold: large weights are set aside while onnx looks at the rest."""

from __future__ import annotations

import onnx

from mmdeploy_ext.graph.io import files

LARGE = 1 << 16
"""Bytes from which on an initializer is set aside."""


def is_large(model: onnx.ModelProto) -> bool:
    """Return whether a model has to be written with external data."""
    return files.serialised_size(model) > files.PROTOBUF_LIMIT


def set_aside(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """Return a copy in which large weights are inputs, and these weights; a small model is just copied."""
    light = onnx.ModelProto()
    if not is_large(model):
        light.CopyFrom(model)
        return light, []
    _copy(model, light, 'graph')
    _copy(model.graph, light.graph, 'initializer')
    inputs = {value.name for value in model.graph.input}
    heavy = []
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) < LARGE or tensor.name in inputs:
            light.graph.initializer.add().CopyFrom(tensor)
            continue
        heavy.append(tensor)
        kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        light.graph.input.append(kind)
    return light, heavy


def put_back(light: onnx.ModelProto, heavy: list[onnx.TensorProto]) -> None:
    """Make constants of the weights again that `set_aside` made inputs, in place."""
    names = {tensor.name for tensor in heavy}
    for place in reversed(range(len(light.graph.input))):
        if light.graph.input[place].name in names:
            del light.graph.input[place]
    light.graph.initializer.extend(heavy)


def infer(model: onnx.ModelProto, **options: bool) -> onnx.GraphProto:
    """Return the graph with the types that inference finds; for a model of any size.

    Weights that were set aside are inputs of the result.
    """
    return onnx.shape_inference.infer_shapes(set_aside(model)[0], **options).graph


def _copy(source: object, target: object, without: str) -> None:
    """Copy all fields of a message but one."""
    for field, value in source.ListFields():
        if field.name == without:
            continue
        if field.is_repeated:
            getattr(target, field.name).extend(value)
        elif field.message_type:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
