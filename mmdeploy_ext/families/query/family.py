"""MaskFormer and Mask2Former: supported configs."""

from typing import Any

from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.base.config import refused_by_name
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.common.options import PASTE_MASKS
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.query import graphs, masks, supported_parts
from mmdeploy_ext.families.query.facts import QueryFacts
from mmdeploy_ext.families.query.reference import QueryMasksReference, QueryPanopticReference
from mmdeploy_ext.spec.options import Options


def claims(cfg: Any) -> Claim:
    return Claim.DETECTOR if detector_parts.detects(cfg, supported_parts.MASKFORMER) else Claim.NO


def check_masks(cfg: Any, options: Options) -> list[nn.Module]:
    options.refuse([PASTE_MASKS], 'masks always have the size of the original image')
    with refused_by_name(cfg):
        supported_parts.check_class(
            DETECTORS.get(cfg.model.type), supported_parts.MASK_DETECTORS, 'detector of masks by queries'
        )
        heads = [
            detector_parts.tested_head(cfg, key, detector_parts.test_cfg_of(cfg))
            for key in ('panoptic_head', 'panoptic_fusion_head')
        ]
        supported_parts.check_mask_heads(*heads)
    detector_parts.check(cfg.model, options)
    if supported_parts.attends_inside_masks(heads[0]) and options.opset:
        detector_parts.check_grid_sample(type(heads[0]).__name__, options)
    return heads


class QueryMasksFamily(ImageFamily):
    name = 'query'
    task = 'mask'
    forms = ('full',)
    reference = QueryMasksReference
    untraced = (*ImageFamily.untraced, *supported_parts.UNTRACED)
    spec, stages = staticmethod(graphs.masks_spec), staticmethod(graphs.masks_stages)
    feeds = staticmethod(image_graphs.mask_feeds)
    claims = staticmethod(claims)

    def for_config(self, cfg: Any) -> ImageFamily:
        return MAPS if supported_parts.fuses(cfg) else self

    def check(self, cfg: Any, options: Options) -> None:
        head, fusion = check_masks(cfg, options)
        with refused_by_name(cfg):
            supported_parts.check_instances(fusion)
            pairs = head.num_queries * head.num_classes
            detector_parts.check_limit('max_per_image', masks.max_per_image(fusion), pairs)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.panoptic_head.num_things_classes)

    def facts(self, model: nn.Module) -> QueryFacts:
        limit = masks.max_per_image(model.panoptic_fusion_head)
        return QueryFacts(num_classes=self.num_classes(model), max_per_img=limit)


class QueryPanopticFamily(ImageFamily):
    name = 'query'
    task = 'panoptic'
    forms = ('full', 'raw')
    reference = QueryPanopticReference
    untraced = (*ImageFamily.untraced, *supported_parts.UNTRACED)
    spec, stages = staticmethod(graphs.panoptic_spec), staticmethod(graphs.panoptic_stages)
    feeds = staticmethod(image_graphs.mask_feeds)
    claims = staticmethod(claims)

    def check(self, cfg: Any, options: Options) -> None:
        head, fusion = check_masks(cfg, options)
        with refused_by_name(cfg):
            supported_parts.check_panoptic(head, fusion)
            masks.facts_of(fusion)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.panoptic_fusion_head.num_classes)  # things and stuff

    def facts(self, model: nn.Module) -> QueryFacts:
        return masks.facts_of(model.panoptic_fusion_head)


MAPS = QueryPanopticFamily()
