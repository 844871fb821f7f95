"""The graph of a sparse encoder inside a detector, and the contract of a finished graph."""

import dataclasses
from typing import Any

import numpy as np
import onnx
from torch import nn

from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.contract.options import SPARSE_FORM
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.sparse.ir import SparseGraph


def backbone_graph(encoder: nn.Module) -> SparseGraph:
    """Return a sparse encoder with batch normalisation folded, coordinates in its own order."""
    from mmdeploy_ext.exporting.sparse.trace import trace
    from mmdeploy_ext.sparse.fold import fold
    from projects.mmdet3d_plugin.sparse_backbone.model import axes

    shape = tuple(int(size) for size in encoder.sparse_shape)
    channels = int(encoder.in_channels)
    return fold(trace(encoder, order=axes(encoder), spatial_shape=shape, in_channels=channels))


def check_form(filename: str, options: Options, sparse: bool) -> None:
    """Refuse a form of a sparse backbone for a config that has none.

    Args:
        filename: of the config.
        options: with `sparse_form`.
        sparse: whether it has one.

    Raises:
        UsageError: it has none.
    """
    if options.sparse_form != SPARSE_FORM.default and not sparse:
        raise UsageError(
            f'--sparse-form {options.sparse_form}: {filename} has no sparse backbone; leave it out'
        )


def portable_graph(encoder: nn.Module, name: str, family: str, options: Options) -> Graph:
    """Return the graph of a sparse encoder in standard operators.

    Args:
        encoder: in the detector.
        name: of the graph.
        family: of its contract.
        options: with `opset` and `sparse_form`.
    """
    from mmdeploy_ext.sparse import portable

    model = portable.to_onnx(backbone_graph(encoder), opset=options.opset, form=options.sparse_form)
    return Graph(name, None, starts_single(model_spec(model, f'{family}/{name}')), {}, model)


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
