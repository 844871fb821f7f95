"""LiDAR detectors with anchors: supported configs, two graphs (points to view, head), their own test path."""

from collections.abc import Mapping
from typing import Any

import torch
from mmdet3d.models import builder
from torch import nn

from mmdeploy_ext.base.config import test_cfg_key
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.anchor3d.runtime import AnchorFacts
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import anchor_heads
from mmdeploy_ext.families.common.anchor_heads import (
    PER_CLASS_HEAD,
    anchor_settings,
    check_anchor_head,
    flat_outputs,
)
from mmdeploy_ext.families.common.detector_parts import part_cfg, test_cfg_of
from mmdeploy_ext.families.common.lidar_graphs import DenseHead, points_and_head
from mmdeploy_ext.families.common.lidar_models import DYNAMIC_DETECTOR, UNTRACED, check_points_side
from mmdeploy_ext.families.common.lidar_parts import parts_of, prefix_of
from mmdeploy_ext.families.common.lidar_reference import LidarReference
from mmdeploy_ext.families.common.pillars import has_pillars
from mmdeploy_ext.families.common.runtime.anchors3d import OUTPUTS
from mmdeploy_ext.families.common.samples import SweepMethods
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.runtime.lidar import PILLARS
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph
from mmdeploy_ext.upstream.models.building import names_of_class

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


class AnchorReference(LidarReference):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model, facts_of(model).output_names, flat_outputs)

    def head_outputs(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        levels = len(tensors) // len(OUTPUTS)
        return tuple([tensors[f'{name}_{level}'] for level in range(levels)] for name in OUTPUTS)


HEADS = ('Anchor3DHead', 'FreeAnchor3DHead', PER_CLASS_HEAD)
REGION_PROPOSAL_HEAD = 'PartA2RPNHead'
"""A head of mmdet3d that is derived from `Anchor3DHead` and belongs to a detector of two stages."""
DETECTORS = ('VoxelNet', 'MVXFasterRCNN', 'SASSD', DYNAMIC_DETECTOR)
READ = ('use_rotate_nms', 'nms_thr', 'max_num')


def check_head(filename: str, model: Mapping[str, Any]) -> None:
    key = f'{prefix_of(model)}bbox_head'
    check_anchor_head(filename, f'model.{key}', model[key])


def check_limits(cfg: Any) -> None:
    key, test = test_cfg_key(cfg), test_cfg_of(cfg)
    if prefix_of(cfg.model):
        key, test = f'{key}.pts', test.get('pts') or {}
    if missing := [name for name in READ if test.get(name) is None]:
        raise ConfigError(f'{cfg.filename}: {key} has no {", ".join(missing)}, which mmdet3d requires')
    max_num = test['max_num']
    if not isinstance(max_num, int) or max_num < 1:
        raise ConfigError(f'{cfg.filename}: {key}.max_num={max_num!r}, expected a positive whole number')


class AnchorFamily(SweepMethods, SequenceFamily):
    name = 'anchor3d'
    untraced = (*UNTRACED, *anchor_heads.UNTRACED)
    graphs, reference = staticmethod(graphs), staticmethod(AnchorReference)
    facts = staticmethod(facts_of)

    def claims(self, cfg: Any) -> Claim:
        if not set(names_of_class(builder.DETECTORS, cfg.model.get('type'))) & set(DETECTORS):
            return Claim.NO
        head = part_cfg(cfg.model, f'{prefix_of(cfg.model)}bbox_head')
        heads = set(names_of_class(builder.HEADS, head.get('type')))
        return Claim.DETECTOR if heads & set(HEADS) and REGION_PROPOSAL_HEAD not in heads else Claim.NO

    def check_parts(self, filename: str, model: Mapping[str, Any]) -> None:
        check_points_side(filename, model, 'a LiDAR detector with anchors', HEADS)
        check_head(filename, model)

    def check(self, cfg: Any, options: Options) -> None:
        super().check(cfg, options)
        check_limits(cfg)
