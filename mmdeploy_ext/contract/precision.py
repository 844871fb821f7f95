"""What `--precision` of an export means: the choices, and what it does to a contract.

A float16 file holds casts: the network computes in float16, but for what has to stay float32. Its inputs and
outputs stay float32 unless they are asked to be float16. There is no bfloat16 file: it is an engine's choice.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec

PRECISIONS = ('fp32', 'fp16', 'bf16')


def with_half_features(spec: GraphSpec) -> GraphSpec:
    """Return the contract of an image model whose images and compared outputs are float16 outside.

    Sizes and ratios stay float32, and so do pixels, in which float16 is half a pixel wide from 512 on, and
    outputs that are detections: what made them computed in float32.
    """
    inputs = tuple(_half(tensor) if len(tensor.axes) == 4 else tensor for tensor in spec.inputs)
    outputs = tuple(_half(tensor) if _is_feature(tensor) else tensor for tensor in spec.outputs)
    return dataclasses.replace(spec, inputs=inputs, outputs=outputs)


def _is_feature(tensor: TensorSpec) -> bool:
    units = {group.unit for group in tensor.column_groups} | {tensor.unit}
    return tensor.compare == 'values' and 'pixel' not in units


def _half(tensor: TensorSpec) -> TensorSpec:
    return dataclasses.replace(tensor, dtype='float16') if tensor.dtype == 'float32' else tensor


def written_precision(model: onnx.ModelProto) -> str:
    """Return what a file really holds: 'fp16' when one of its constants or casts is float16, else 'fp32'."""
    from onnx import TensorProto

    if any(value.data_type == TensorProto.FLOAT16 for value in model.graph.initializer):
        return 'fp16'
    entries = (entry for node in model.graph.node if node.op_type == 'Cast' for entry in node.attribute)
    to_half = any(entry.name == 'to' and entry.i == TensorProto.FLOAT16 for entry in entries)
    return 'fp16' if to_half else 'fp32'
