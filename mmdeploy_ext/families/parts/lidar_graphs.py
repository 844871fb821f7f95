"""The graphs of LiDAR detectors: a sparse backbone or pillars, and the dense remainder as flat tensors.

Glossary: C channels, H, W bird's-eye view.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.families.parts.lidar_parts import parts_of
from mmdeploy_ext.families.parts.pillars import has_pillars, pillars_graph
from mmdeploy_ext.families.parts.sparse_graph import portable_graph


class DenseHead(nn.Module):
    """The network of the bird's-eye view, its neck and the head, up to raw outputs.

    `flatten` makes one tuple of the head's outputs.
    """

    def __init__(self, model: nn.Module, flatten: Callable[[Any], tuple[torch.Tensor, ...]]) -> None:
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


def head_spec(
    name: str, head: nn.Module, bev: TensorSpec, names: Sequence[str], facts: Sequence[tuple[str, str]]
) -> GraphSpec:
    """Return the contract of a module behind the bird's-eye view, whose shapes are those of a trial run.

    Args:
        name: of the graph, as its contract has it.
        head: takes the bird's-eye view, and returns a tuple.
        bev: contract of its input.
        names: of its outputs.
        facts: (meaning, unit) of each output.
    """
    device = next(head.parameters()).device
    with torch.no_grad():
        tensors = head(torch.zeros(bev.axes, device=device))
    outputs = tuple(
        TensorSpec(output_name, 'float32', tuple(tensor.shape), meaning, unit)
        for output_name, tensor, (meaning, unit) in zip(names, tensors, facts, strict=True)
    )
    return GraphSpec(name, (bev,), outputs)
