"""Precisions: the choices of engines, and what a float16 file changes in a contract.

A float16 file holds casts: the network computes in float16, except for the nodes that stay float32. Its
inputs and outputs stay float32 without `--fp16-io`. There is no bfloat16 file: bfloat16 is a choice of the
engine.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec

PRECISIONS = ('fp32', 'fp16', 'bf16')
"""What an engine may compute in (`--inference-precision`)."""


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
