"""CenterPoint's two graphs: the sparse backbone or pillars, and the dense remainder as flat tensors.

Glossary: C channels, H, W bird's-eye view.
"""

from typing import Any

import torch
from torch import nn

from mmdeploy_ext.families.centerpoint.facts import CenterPointFacts
from mmdeploy_ext.families.common.lidar_graphs import points_and_head
from mmdeploy_ext.families.common.pillars import has_pillars
from mmdeploy_ext.families.common.runtime.center_boxes import VALUES
from mmdeploy_ext.runtime.lidar import PILLARS
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph

UNITS = dict(reg='cell', height='m', dim='log m', rot='', vel='m/s', heatmap='logit')


def flat_outputs(task_outputs: tuple[list[dict[str, torch.Tensor]], ...]) -> tuple[torch.Tensor, ...]:
    """Flatten the outputs of `CenterHead.forward`, maps (1, C, H, W), one level per task."""
    names = (*VALUES, 'heatmap')
    return tuple(outputs[name] for (outputs,) in task_outputs for name in names if name in outputs)


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    bev_meaning = "bird's-eye view (BEV) from the sparse backbone"
    return points_and_head(model, options, 'centerpoint', flat_outputs, head_outputs(model), bev_meaning)


def head_outputs(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Return output name -> (meaning, unit); without `norm_bbox` `dim` is metres, not logarithms."""
    rule = facts_of(model)
    units = UNITS if rule.norm_bbox else UNITS | dict(dim='m')
    names = {name: name.rsplit('_', 1) for name in rule.output_names}
    return {name: (f'{output} of task {task}', units[output]) for name, (output, task) in names.items()}


def facts_of(model: nn.Module) -> CenterPointFacts:
    points = PILLARS if has_pillars(model) else None
    settings = head_settings(model.pts_bbox_head)
    return CenterPointFacts(**settings, points=points, box_convention=model.box_convention)


def head_settings(head: nn.Module) -> dict[str, Any]:
    coder, test = head.bbox_coder, head.test_cfg
    return dict(
        num_classes=[int(count) for count in head.num_classes],
        voxel_size=[float(size) for size in coder.voxel_size[:2]],
        pc_origin=[float(value) for value in coder.pc_range[:2]],
        out_size_factor=int(coder.out_size_factor),
        max_num=int(coder.max_num),
        score_threshold=coder.score_threshold,
        post_center_range=[float(value) for value in coder.post_center_range],
        norm_bbox=bool(head.norm_bbox),
        with_velocity=bool(head.with_velocity),
        nms_type=str(test['nms_type']),
        nms_thr=float(test.get('nms_thr') or 0.0),
        nms_score_threshold=float(test.get('score_threshold') or 0.0),
        pre_max_size=test.get('pre_max_size'),
        post_max_size=test.get('post_max_size'),
        min_radius=[float(radius) for radius in test.get('min_radius') or ()],
        post_center_limit_range=[float(value) for value in test.get('post_center_limit_range') or ()],
    )
