"""The two graphs of LiDAR detectors: voxels or pillars to the bird's-eye view, and on to raw outputs.

Glossary: N voxels or pillars, P points of a pillar, D values of a point, C channels, H, W cells of the
bird's-eye view along y and x, from the smallest coordinate on.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from mmdeploy_ext.base.errors import CheckpointError, UsageError
from mmdeploy_ext.exporting.sparse import portable
from mmdeploy_ext.exporting.sparse.fold import fold
from mmdeploy_ext.exporting.sparse.trace import trace
from mmdeploy_ext.families.common.lidar_parts import parts_of
from mmdeploy_ext.families.common.pillars import has_pillars, pillars_graph
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


Flatten = Callable[[Any], tuple[torch.Tensor, ...]]
Outputs = Mapping[str, tuple[str, str]]
"""Output name -> (meaning, unit), in order."""


class DenseHead(nn.Module):
    """Bird's-eye network, neck and head of a detector; `flatten` makes a tuple of the head's outputs."""

    def __init__(self, model: nn.Module, flatten: Flatten) -> None:
        super().__init__()
        parts = parts_of(model)
        dense = dict(backbone=parts.backbone, neck=parts.neck, bbox_head=parts.head)
        for name, part in dense.items():
            if part is not None:
                self.add_module(f'{parts.prefix}{name}', part)
        self.flatten = flatten

    def forward(self, bev: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the head's raw outputs of the view (1, C, H, W)."""
        outputs: Any = bev
        for part in self.children():
            outputs = part(outputs)
        return self.flatten(outputs)


def points_and_head(
    model: nn.Module, options: Options, family: str, flatten: Flatten, outputs: Outputs, bev_meaning: str
) -> list[Graph]:
    points, head = points_graph(model, options, family), DenseHead(model, flatten)
    bev = TensorSpec('bev', 'float32', points.spec.outputs[0].axes, bev_meaning)
    return [points, head_graph(head, head_spec(f'{family}/head', head, bev, outputs))]


def points_graph(model: nn.Module, options: Options, family: str) -> Graph:
    """Return the graph 'backbone', from voxels or pillars to the bird's-eye view (1, C, H, W).

    Voxels (N, D) float32 come with index tables (`sparse_graph.portable_graph`), pillars are (N, P, D)
    (`pillars.py`).
    """
    parts = parts_of(model)
    if has_pillars(model):
        return pillars_graph(parts, family)
    return portable_graph(parts.middle_encoder, 'backbone', family, options)


def head_graph(module: nn.Module, spec: GraphSpec) -> Graph:
    """Return the graph of a module with the only input `bev` (1, C, H, W), traced on random numbers."""
    device = next(module.parameters()).device
    bev = torch.rand(spec.inputs[0].axes, generator=torch.Generator().manual_seed(0)).to(device)
    return Graph('head', module.eval().to(device), spec, dict(bev=bev))


def head_spec(name: str, head: nn.Module, bev: TensorSpec, outputs: Outputs) -> GraphSpec:
    """Return the contract of a module behind the bird's-eye view, in float32; shapes come from a run."""
    device = next(head.parameters()).device
    with torch.no_grad():
        tensors = head(torch.zeros(bev.axes, device=device))
    specs = tuple(
        TensorSpec(output, 'float32', tuple(tensor.shape), meaning, unit)
        for (output, (meaning, unit)), tensor in zip(outputs.items(), tensors, strict=True)
    )
    return GraphSpec(name, (bev,), specs)
