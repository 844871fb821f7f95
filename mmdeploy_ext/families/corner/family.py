"""Detectors of corners: supported configs."""

from typing import Any

from torch import nn

from mmdeploy_ext.base.config import refused_by_name
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.corner import graphs
from mmdeploy_ext.families.corner.facts import CornerFacts
from mmdeploy_ext.families.corner.graphs import facts_of, suppression
from mmdeploy_ext.families.corner.reference import CornerReference
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module

dense_heads, detectors = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.models.detectors')
HEADS = (dense_heads.CentripetalHead, dense_heads.CornerHead)


class CornerFamily(ImageFamily):
    name = 'corner'
    task = 'bbox2d'
    forms = ('full',)
    reference = CornerReference
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(image_graphs.feeds)

    def claims(self, cfg: Any) -> Claim:
        return Claim.DETECTOR if detector_parts.detects(cfg, detectors.CornerNet) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        test_cfg = detector_parts.test_cfg_of(cfg)
        with refused_by_name(cfg):
            head = detector_parts.tested_head(cfg, 'bbox_head', test_cfg)
            if not isinstance(head, HEADS):
                raise ConfigError(
                    f'model.bbox_head.type={type(head).__name__}: expected CornerHead or CentripetalHead'
                )
            facts_of(head)
            suppression(test_cfg)
        detector_parts.check(cfg.model, options)

    def facts(self, model: nn.Module) -> CornerFacts:
        return facts_of(model.bbox_head)
