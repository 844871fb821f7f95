"""CenterPoint's two graphs: the sparse backbone or pillars, and the dense remainder as flat tensors.

Glossary: C channels, H, W bird's-eye view, K classes of a task.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.families.centerpoint.pillars import has_pillars, pillars_graph, points_facts
from mmdeploy_ext.families.centerpoint.runtime.boxes import VALUES, BoxRule
from mmdeploy_ext.families.parts.parts import parts_of
from mmdeploy_ext.families.parts.sparse_graph import portable_graph

UNITS = dict(reg='cell', height='m', dim='log m', rot='', vel='m/s', heatmap='logit')


class DenseHead(nn.Module):
    """The network of the bird's-eye view, its neck and the head, up to raw outputs.

    `flatten` makes one tuple of what the head gives.
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
        found: Any = bev
        for name in self.names:
            found = getattr(self, name)(found)
        return self.flatten(found)


def flat_outputs(task_outputs: tuple[list[dict[str, torch.Tensor]], ...]) -> tuple[torch.Tensor, ...]:
    """Return what `CenterHead.forward` gives as one tuple, in the order of `BoxRule.output_names`."""
    names = (*VALUES, 'heatmap')
    return tuple(level[name] for (level,) in task_outputs for name in names if name in level)


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    """Return the points' side, a sparse backbone or pillars, and the dense head."""
    folded, points = fuse(model), points_graph(model, options, 'centerpoint')
    shape = points.spec.outputs[0].axes
    return [points, head_graph(DenseHead(folded, flat_outputs), dense_spec(model, shape))]


def points_graph(model: nn.Module, options: Options, family: str) -> Graph:
    """Return the graph that gives the bird's-eye view: a sparse encoder, or pillars."""
    parts = parts_of(model)
    if has_pillars(model):
        return pillars_graph(parts, family)
    return portable_graph(parts.middle_encoder, 'backbone', family, options)


def head_graph(module: nn.Module, spec: GraphSpec) -> Graph:
    """Return the graph behind the bird's-eye view, traced on random numbers."""
    device = next(module.parameters()).device
    bev = torch.rand(spec.inputs[0].axes, generator=torch.Generator().manual_seed(0)).to(device)
    return Graph('head', module.eval().to(device), spec, dict(bev=bev))


def dense_spec(model: nn.Module, bev_shape: tuple[int, ...]) -> GraphSpec:
    """Return the contract of `DenseHead` behind a backbone's result (1, C, H, W)."""
    names = box_rule(model.pts_bbox_head).output_names
    bev = TensorSpec('bev', 'float32', tuple(bev_shape), "bird's-eye view of the sparse backbone")
    facts = [
        (f'{kind} of task {task}', UNITS[kind]) for kind, task in (name.rsplit('_', 1) for name in names)
    ]
    return head_spec('centerpoint/head', DenseHead(model, flat_outputs), bev, names, facts)


def head_spec(
    name: str, head: nn.Module, bev: TensorSpec, names: Sequence[str], facts: Sequence[tuple[str, str]]
) -> GraphSpec:
    """Return the contract of a module behind the bird's-eye view, of names, meanings and units."""
    device = next(head.parameters()).device
    with torch.no_grad():
        found = head(torch.zeros(bev.axes, device=device))
    rows = zip(names, found, facts, strict=True)
    outputs = tuple(TensorSpec(one, 'float32', tuple(tensor.shape), *own) for one, tensor, own in rows)
    return GraphSpec(name, (bev,), outputs)


def postprocess_facts(model: nn.Module) -> dict[str, Any]:
    """Return what the metadata tells about decoding: a `BoxRule`."""
    return box_rule(model.pts_bbox_head).to_json() | points_facts(model)


def box_rule(head: nn.Module) -> BoxRule:
    """Return how a `CenterHead` decodes."""
    coder, test = head.bbox_coder, head.test_cfg
    return BoxRule(
        num_classes=tuple(int(count) for count in head.num_classes),
        voxel_size=_floats(coder.voxel_size[:2]),
        pc_origin=_floats(coder.pc_range[:2]),
        out_size_factor=int(coder.out_size_factor),
        max_num=int(coder.max_num),
        score_threshold=coder.score_threshold,
        post_center_range=_floats(coder.post_center_range),
        norm_bbox=bool(head.norm_bbox),
        with_velocity=bool(head.with_velocity),
        nms_type=str(test['nms_type']),
        nms_thr=float(test.get('nms_thr') or 0.0),
        nms_score_threshold=float(test.get('score_threshold') or 0.0),
        pre_max_size=test.get('pre_max_size'),
        post_max_size=test.get('post_max_size'),
        min_radius=_floats(test.get('min_radius') or ()),
        post_center_limit_range=_floats(test.get('post_center_limit_range') or ()),
    )


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
