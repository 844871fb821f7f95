"""The graphs of LiDAR detectors: a sparse backbone or pillars, and the dense remainder as flat tensors.

Glossary: C channels, H, W bird's-eye view.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.families.parts.lidar_parts import parts_of
from mmdeploy_ext.families.parts.pillars import has_pillars, pillars_graph
from mmdeploy_ext.families.parts.sparse_graph import portable_graph

Flatten = Callable[[Any], tuple[torch.Tensor, ...]]
"""Makes one tuple of tensors of what a head returns."""
Outputs = Mapping[str, tuple[str, str]]
"""Name of each output of a graph, in their order -> its meaning and unit."""


class DenseHead(nn.Module):
    """The network of the bird's-eye view, its neck and the head, up to raw outputs."""

    def __init__(self, model: nn.Module, flatten: Flatten) -> None:
        super().__init__()
        parts = parts_of(model)
        dense = dict(backbone=parts.backbone, neck=parts.neck, bbox_head=parts.head)
        named = {f'{parts.prefix}{name}': part for name, part in dense.items() if part is not None}
        for name, part in named.items():
            self.add_module(name, part)
        self.names, self.flatten = list(named), flatten

    def forward(self, bev: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the head's raw outputs of the bird's-eye view (1, C, H, W) float32."""
        outputs: Any = bev
        for name in self.names:
            outputs = getattr(self, name)(outputs)
        return self.flatten(outputs)


def points_and_head(
    model: nn.Module, options: Options, family: str, flatten: Flatten, outputs: Outputs, bev_meaning: str
) -> list[Graph]:
    """Return the graph of the points, a sparse backbone or pillars, and the graph of the dense head.

    Args:
        model: the detector.
        options: of the export.
        family: name of the family, with which the names of the contracts begin.
        flatten: makes one tuple of the outputs of the head.
        outputs: of that tuple.
        bev_meaning: of the tensor between the graphs, as the contract of the head has it.
    """
    points, head = points_graph(model, options, family), DenseHead(fuse(model), flatten)
    bev = TensorSpec('bev', 'float32', points.spec.outputs[0].axes, bev_meaning)
    return [points, head_graph(head, head_spec(f'{family}/head', head, bev, outputs))]


def points_graph(model: nn.Module, options: Options, family: str) -> Graph:
    """Return the graph from points to the bird's-eye view: of a sparse encoder, or of pillars.

    `family` is the family's name, with which the name of the contract begins.
    """
    parts = parts_of(model)
    if has_pillars(model):
        return pillars_graph(parts, family)
    return portable_graph(parts.middle_encoder, 'backbone', family, options)


def head_graph(module: nn.Module, spec: GraphSpec) -> Graph:
    """Return the graph of a module that takes the bird's-eye view, traced on random numbers.

    `spec` is its contract, whose only input is `bev`.
    """
    device = next(module.parameters()).device
    bev = torch.rand(spec.inputs[0].axes, generator=torch.Generator().manual_seed(0)).to(device)
    return Graph('head', module.eval().to(device), spec, dict(bev=bev))


def head_spec(name: str, head: nn.Module, bev: TensorSpec, outputs: Outputs) -> GraphSpec:
    """Return the contract of a module behind the bird's-eye view, whose shapes are those of a trial run.

    Args:
        name: of the graph, as its contract has it.
        head: takes the bird's-eye view, and returns a tuple.
        bev: contract of its input.
        outputs: of the head.
    """
    device = next(head.parameters()).device
    with torch.no_grad():
        tensors = head(torch.zeros(bev.axes, device=device))
    specs = tuple(
        TensorSpec(output, 'float32', tuple(tensor.shape), meaning, unit)
        for (output, (meaning, unit)), tensor in zip(outputs.items(), tensors, strict=True)
    )
    return GraphSpec(name, (bev,), specs)
