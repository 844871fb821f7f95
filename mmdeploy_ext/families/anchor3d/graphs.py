"""The two graphs of LiDAR detectors with anchors: a sparse backbone or pillars, and the dense head."""

import torch
from torch import nn

from mmdeploy_ext.families.anchor3d.facts import AnchorFacts
from mmdeploy_ext.families.common.anchor_heads import anchor_settings, flat_outputs
from mmdeploy_ext.families.common.lidar_graphs import DenseHead, points_and_head
from mmdeploy_ext.families.common.lidar_parts import parts_of
from mmdeploy_ext.families.common.pillars import has_pillars
from mmdeploy_ext.runtime.lidar import PILLARS
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph

MEANINGS = dict(
    cls_score='scores of each anchor and class',
    bbox_pred='deltas of each anchor',
    dir_cls_pred='whether the heading of a box is reversed',
)


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    """Return two graphs: points to the bird's-eye view, and the view to raw outputs (`points_and_head`)."""
    bev_meaning = "bird's-eye view (BEV) of the points"
    return points_and_head(model, options, 'anchor3d', flat_outputs, head_outputs(model), bev_meaning)


def head_outputs(model: nn.Module) -> dict[str, tuple[str, str]]:
    names = {name: name.rsplit('_', 1) for name in facts_of(model).output_names}
    return {
        name: (f'{MEANINGS[output]}, level {level}', '' if output == 'bbox_pred' else 'logit')
        for name, (output, level) in names.items()
    }


def facts_of(model: nn.Module) -> AnchorFacts:
    head = parts_of(model).head
    return AnchorFacts(
        **anchor_settings(head),
        max_num=int(head.test_cfg['max_num']),
        cells=cells_of(model),
        points=PILLARS if has_pillars(model) else None,
        box_convention=model.box_convention,
    )


def cells_of(model: nn.Module) -> tuple[int, ...]:
    parts = parts_of(model)
    if not hasattr(parts.head, 'featmap_sizes'):
        return ()
    if not parts.head.featmap_sizes:
        scatter, device = parts.middle_encoder, next(model.parameters()).device
        empty = torch.zeros(1, int(scatter.in_channels), int(scatter.ny), int(scatter.nx), device=device)
        with torch.no_grad():
            DenseHead(model, flat_outputs)(empty)
    return tuple(int(side) for size in parts.head.featmap_sizes for side in size)
