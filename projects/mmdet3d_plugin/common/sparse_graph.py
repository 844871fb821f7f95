"""The graph of a sparse encoder inside a detector, and the contract of a finished graph."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from mmdeploy_ext.sparse.ir import SparseGraph


def backbone_graph(encoder: nn.Module) -> SparseGraph:
    """Return a sparse encoder with batch normalisation folded, coordinates in its own order."""
    from mmdeploy_ext.exporting.sparse.trace import trace
    from mmdeploy_ext.sparse.fold import fold
    from projects.mmdet3d_plugin.sparse_backbone.model import axes

    shape = tuple(int(size) for size in encoder.sparse_shape)
    channels = int(encoder.in_channels)
    return fold(trace(encoder, order=axes(encoder), spatial_shape=shape, in_channels=channels))


def model_spec(model: onnx.ModelProto, name: str) -> GraphSpec:
    """Return the contract that a finished graph has."""

    def tensors(values: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                value.name,
                np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name,
                tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
            )
            for value in values
        )

    return GraphSpec(name, tensors(model.graph.input), tensors(model.graph.output))


def starts_single(spec: GraphSpec) -> GraphSpec:
    """Return a contract whose inputs are coordinates: float32 up to the first kernel in a float16 file."""
    inputs = tuple(dataclasses.replace(tensor, single=True) for tensor in spec.inputs)
    return dataclasses.replace(spec, inputs=inputs)
