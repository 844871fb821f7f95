"""CenterPoint's two graphs: the sparse backbone or pillars, and the dense remainder as flat tensors.

Glossary: C channels, H, W bird's-eye view.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.families.centerpoint.runtime import VALUES, BoxRule
from mmdeploy_ext.families.parts.lidar_graphs import DenseHead, head_graph, head_spec, points_graph
from mmdeploy_ext.families.parts.pillars import points_facts

UNITS = dict(reg='cell', height='m', dim='log m', rot='', vel='m/s', heatmap='logit')
"""Output of a task of `CenterHead` -> unit."""


def flat_outputs(task_outputs: tuple[list[dict[str, torch.Tensor]], ...]) -> tuple[torch.Tensor, ...]:
    """Return the outputs of `CenterHead.forward` as one tuple, in the order of `BoxRule.output_names`.

    `task_outputs` has for each task a list of levels, here of one, with the outputs by name.
    """
    names = (*VALUES, 'heatmap')
    return tuple(outputs[name] for (outputs,) in task_outputs for name in names if name in outputs)


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    """Return the graph of the points, a sparse backbone or pillars, and the graph of the dense head."""
    folded, points = fuse(model), points_graph(model, options, 'centerpoint')
    shape = points.spec.outputs[0].axes
    return [points, head_graph(DenseHead(folded, flat_outputs), dense_spec(model, shape))]


def dense_spec(model: nn.Module, bev_shape: tuple[int, ...]) -> GraphSpec:
    """Return the contract of `DenseHead` on a bird's-eye view of a shape (1, C, H, W)."""
    names = box_rule(model.pts_bbox_head).output_names
    bev = TensorSpec('bev', 'float32', tuple(bev_shape), "bird's-eye view of the sparse backbone")
    meanings_and_units = [
        (f'{output} of task {task}', UNITS[output])
        for output, task in (name.rsplit('_', 1) for name in names)
    ]
    return head_spec('centerpoint/head', DenseHead(model, flat_outputs), bev, names, meanings_and_units)


def postprocess_facts(model: nn.Module) -> dict[str, Any]:
    """Return the metadata's entry `postprocess`: the attributes of a `BoxRule`, and `points_facts`."""
    return box_rule(model.pts_bbox_head).to_json() | points_facts(model)


def box_rule(head: nn.Module) -> BoxRule:
    """Return the settings by which a `CenterHead` decodes."""

    def floats(values: Iterable[Any]) -> tuple[float, ...]:
        return tuple(float(value) for value in values)

    coder, test = head.bbox_coder, head.test_cfg
    return BoxRule(
        num_classes=tuple(int(count) for count in head.num_classes),
        voxel_size=floats(coder.voxel_size[:2]),
        pc_origin=floats(coder.pc_range[:2]),
        out_size_factor=int(coder.out_size_factor),
        max_num=int(coder.max_num),
        score_threshold=coder.score_threshold,
        post_center_range=floats(coder.post_center_range),
        norm_bbox=bool(head.norm_bbox),
        with_velocity=bool(head.with_velocity),
        nms_type=str(test['nms_type']),
        nms_thr=float(test.get('nms_thr') or 0.0),
        nms_score_threshold=float(test.get('score_threshold') or 0.0),
        pre_max_size=test.get('pre_max_size'),
        post_max_size=test.get('post_max_size'),
        min_radius=floats(test.get('min_radius') or ()),
        post_center_limit_range=floats(test.get('post_center_limit_range') or ()),
    )
