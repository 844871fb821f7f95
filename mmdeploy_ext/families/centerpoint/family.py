"""CenterPoint: supported configs, graphs, reference and runtime."""

from collections.abc import Mapping
from typing import Any

from mmdet3d.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.base.config import test_cfg_key
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import number
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.centerpoint.facts import NMS_TYPES
from mmdeploy_ext.families.centerpoint.graphs import facts_of, graphs
from mmdeploy_ext.families.centerpoint.reference import CenterPointReference
from mmdeploy_ext.families.common.detector_parts import test_cfg_of
from mmdeploy_ext.families.common.lidar_models import UNTRACED, check_points_side
from mmdeploy_ext.families.common.sweep_samples import SweepMethods
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.models.building import names_of_class


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
