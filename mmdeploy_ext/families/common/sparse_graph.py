"""The sparse encoder of a detector: graph, weights, contract."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx
from torch import nn

from mmdeploy_ext.base.errors import CheckpointError, UsageError
from mmdeploy_ext.exporting.sparse import portable
from mmdeploy_ext.exporting.sparse.fold import fold
from mmdeploy_ext.exporting.sparse.trace import trace
from mmdeploy_ext.runtime.sparse.ir import SparseGraph
from mmdeploy_ext.spec.options import SPARSE_FORM, Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec
from mmdeploy_ext.upstream.models.sparse_backbone.model import axes
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint, listed
from mmdeploy_ext.upstream.weights.sparse_checkpoint import load_model


def backbone_graph(encoder: nn.Module) -> SparseGraph:
    return fold(traced_encoder(encoder))


def traced_encoder(encoder: nn.Module) -> SparseGraph:
    shape = tuple(int(size) for size in encoder.sparse_shape)
    return trace(encoder, order=axes(encoder), spatial_shape=shape, in_channels=int(encoder.in_channels))


def check_form(filename: str, options: Options, sparse: bool) -> None:
    if options.sparse_form != SPARSE_FORM.default and not sparse:
        raise UsageError(
            f'--sparse-form {options.sparse_form}: {filename} has no sparse backbone; omit the option'
        )


def portable_graph(encoder: nn.Module, name: str, family: str, options: Options) -> Graph:
    """Return the graph of a sparse encoder in standard operators.

    Inputs are index tables, and voxels with coordinates: float32 up to the first kernel also in a float16
    file.
    """
    model = portable.to_onnx(backbone_graph(encoder), opset=options.opset, form=options.sparse_form)
    spec = model_spec(model, f'{family}/{name}')
    inputs = tuple(dataclasses.replace(tensor, single=True) for tensor in spec.inputs)
    return Graph(name, module=None, spec=dataclasses.replace(spec, inputs=inputs), model=model)


def model_spec(model: onnx.ModelProto, name: str) -> GraphSpec:
    def tensors(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
        specs = []
        for value in values:
            tensor_type = value.type.tensor_type
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)).name
            shape = tuple(axis.dim_param or axis.dim_value for axis in tensor_type.shape.dim)
            specs.append(TensorSpec(value.name, dtype, shape))
        return tuple(specs)

    return GraphSpec(name, tensors(model.graph.input), tensors(model.graph.output))


def load_whole(model: nn.Module, checkpoint: Checkpoint, encoder: str) -> None:
    """Load all weights of a detector; sparse kernels may be in any layout of spconv."""
    report = load_model(checkpoint.path, model, encoder)
    if report.rest != 'loaded' or report.unused:
        content = 'only the sparse encoder' if report.rest != 'loaded' else 'the whole model'
        raise CheckpointError(
            f'{checkpoint.path}: does not fit the model of the config: it contains '
            f'{content}{", and unexpected keys " + listed(report.unused) if report.unused else ""}. Use '
            'the config that this checkpoint was trained with'
        )
