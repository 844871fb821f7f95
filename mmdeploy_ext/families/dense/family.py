"""Dense heads: supported configs."""

import copy
from typing import Any

from mmdet.models.builder import HEADS
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors.single_stage import SingleStageDetector
from torch import nn

from mmdeploy_ext.base.config import refused_by_name
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.source_code import nearest_base
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.common.dense_heads import KINDS, kind_of
from mmdeploy_ext.families.common.runtime.dense import largest_num_candidates, level_shapes, sorted_rows
from mmdeploy_ext.families.dense import graphs
from mmdeploy_ext.families.dense.heads import check_results, facts_of
from mmdeploy_ext.families.dense.reference import DenseReference
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.runtime.dense_facts import DenseFacts
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models.building import registered_class

heads = mmdet_module('mmdet.models.dense_heads')
OTHERS = heads.DETRHead, heads.CornerHead, heads.YOLACTHead
"""Base classes of heads of queries, and of heads whose test path is traced."""
MASKED = 'RTMDetInsSepBNHead', 'CondInstBboxHead'
"""Names of heads with masks, whose test path is traced."""


class DenseFamily(ImageFamily):
    name = 'dense'
    task = 'bbox2d'
    forms = ('full', 'decode', 'raw')
    ignored_prefixes = ('teacher_model.',)
    reference = DenseReference
    untraced = (*ImageFamily.untraced, '*integral.forward')
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(image_graphs.feeds)

    def claims(self, cfg: Any) -> Claim:
        head = registered_class(HEADS, detector_parts.part_cfg(cfg.model, 'bbox_head').get('type'))
        detector = detector_parts.detector_of(cfg)
        if head is None or issubclass(head, OTHERS) or nearest_base(head, MASKED):
            return Claim.NO
        if detector is not None and not issubclass(detector, SingleStageDetector):
            return Claim.NO  # an unregistered detector is claimed: building it fails with its name
        if nearest_base(head, KINDS):
            return Claim.HEAD
        return Claim.PART if issubclass(head, BaseDenseHead) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        with refused_by_name(cfg):
            head = self.head(cfg)
            facts = facts_of(head)
            check_results(head, options.form)
            strides = kind_of(head).generator(head).strides
            if any(len(set(stride)) > 1 for stride in strides):
                raise ConfigError(
                    f'model.bbox_head.anchor_generator.strides={strides}; expected equal strides in x and y'
                )
        detector_parts.check(cfg.model, options)
        detector_parts.check_smallest(facts.strides, options)
        if facts.head.visible:
            detector_parts.check_one_image(head, options)
        available = None  # the sizes of maps that do not follow from the strides are not known here
        if facts.head.maps_by_stride:
            shapes = level_shapes(options.height, options.width, facts.strides)
            available = largest_num_candidates(facts, shapes)
        detector_parts.check_max_candidates(options, available)

    def sorted_levels(self, cfg: Any, options: Options) -> dict[str, list[int]]:
        facts = facts_of(self.head(cfg))
        key = detector_parts.nms_pre_key(cfg)
        if key.rpartition('.')[2] not in detector_parts.test_cfg_of(cfg) or facts.nms_pre <= 0:
            return {}
        shapes = level_shapes(options.height, options.width, facts.strides)
        return {key: sorted_rows(facts, shapes)}

    def most_candidates(self, cfg: Any, options: Options) -> dict[str, int]:
        facts = facts_of(self.head(cfg))
        shapes = level_shapes(options.height, options.width, facts.strides)
        return dict(max_candidates=largest_num_candidates(facts, shapes))

    def head(self, cfg: Any) -> nn.Module:
        return detector_parts.tested_head(cfg, 'bbox_head', detector_parts.test_cfg_of(cfg))

    def build(self, cfg: Any) -> nn.Module:
        if (student := detector_parts.without_teacher(cfg.model)) is not cfg.model:
            cfg = copy.deepcopy(cfg)  # a shallow copy shares its content
            cfg.model = student
        return super().build(cfg)

    def facts(self, model: nn.Module) -> DenseFacts:
        return graphs.model_facts(model)
