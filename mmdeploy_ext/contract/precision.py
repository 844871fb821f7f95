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
    """Return the contract of an image model with float16 images and outputs, for `--fp16-io`.

    Sizes and ratios stay float32; so do pixels, since float16 rounds to half a pixel from 512 on, and
    detections, which are computed in float32.
    """
    inputs = tuple(_as_float16(tensor) if len(tensor.axes) == 4 else tensor for tensor in spec.inputs)
    outputs = []
    for tensor in spec.outputs:
        units = {group.unit for group in tensor.column_groups} | {tensor.unit}
        is_feature = tensor.compare == 'values' and 'pixel' not in units
        outputs.append(_as_float16(tensor) if is_feature else tensor)
    return dataclasses.replace(spec, inputs=inputs, outputs=tuple(outputs))


def _as_float16(tensor: TensorSpec) -> TensorSpec:
    return dataclasses.replace(tensor, dtype='float16') if tensor.dtype == 'float32' else tensor


def written_precision(model: onnx.ModelProto) -> str:
    """Return the precision of a graph: 'fp16' if one of its constants or casts is float16, else 'fp32'.

    Those in bodies of its nodes (If, Loop) and of its functions count, too.
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
