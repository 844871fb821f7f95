"""The two graphs of LiDAR detectors: voxels or pillars to the bird's-eye view, and on to raw outputs.

Glossary: N voxels or pillars, P points of a pillar, D values of a point, C channels, H, W cells of the
bird's-eye view along y and x, from the smallest coordinate on.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.families.common.lidar_parts import parts_of
from mmdeploy_ext.families.common.pillars import has_pillars, pillars_graph
from mmdeploy_ext.families.common.sparse_graph import portable_graph
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec

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
