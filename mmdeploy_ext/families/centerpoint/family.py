"""CenterPoint: supported configs, two graphs (points to view, dense head), and its own test path.

Glossary: C channels, H, W bird's-eye view.
"""

from collections.abc import Mapping
from typing import Any

import torch
from mmdet3d.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.base.config import test_cfg_key
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import number
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.centerpoint.runtime import NMS_TYPES, CenterPointFacts
from mmdeploy_ext.families.common.detector_parts import test_cfg_of
from mmdeploy_ext.families.common.lidar_graphs import points_and_head
from mmdeploy_ext.families.common.lidar_models import UNTRACED, check_points_side
from mmdeploy_ext.families.common.lidar_reference import LidarReference
from mmdeploy_ext.families.common.pillars import has_pillars
from mmdeploy_ext.families.common.runtime.center_boxes import VALUES, head_settings
from mmdeploy_ext.families.common.samples import SweepMethods
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.runtime.lidar import PILLARS
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph
from mmdeploy_ext.upstream.models.building import names_of_class

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


class CenterPointReference(LidarReference):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model, facts_of(model).output_names, flat_outputs)

    def head_outputs(self, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, ...]:
        tasks: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            output, task = name.rsplit('_', 1)
            tasks.setdefault(task, {})[output] = tensor
        return tuple([outputs] for outputs in tasks.values())


class CenterPointFamily(SweepMethods, SequenceFamily):
    name = 'centerpoint'
    untraced = (
        *UNTRACED, 'get_bboxes', 'get_task_detections', 'decode', '_topk', '_gather_feat',
        '_transpose_and_gather_feat',
    )  # fmt: skip
    reference = staticmethod(CenterPointReference)
    graphs, facts = staticmethod(graphs), staticmethod(facts_of)

    def claims(self, cfg: Any) -> Claim:
        is_centerpoint = 'CenterPoint' in names_of_class(DETECTORS, cfg.model.get('type'))
        lifts_pictures = 'img_view_transformer' in cfg.model  # BEVDet's detectors derive from CenterPoint
        return Claim.DETECTOR if is_centerpoint and not lifts_pictures else Claim.NO

    def check_parts(self, filename: str, model: Mapping[str, Any]) -> None:
        check_points_side(filename, model, 'CenterPoint', ('CenterHead',))

    def check(self, cfg: Any, options: Options) -> None:
        super().check(cfg, options)
        test = test_cfg_of(cfg).get('pts') or {}
        nms_type = test.get('nms_type')
        if nms_type not in NMS_TYPES:
            raise ConfigError(
                f'{cfg.filename}: {test_cfg_key(cfg)}.pts.nms_type={nms_type!r}, expected '
                f'{" or ".join(NMS_TYPES)}'
            )
        number('pts.nms_thr', test.get('nms_thr') or 0.0, float)

    def num_classes(self, model: nn.Module) -> int:
        return sum(model.pts_bbox_head.num_classes)
