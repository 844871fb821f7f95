"""Detectors of queries: supported configs."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.base.config import refused_by_name
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts, image_graphs, pasting
from mmdeploy_ext.families.common.mask_heads import threshold
from mmdeploy_ext.families.common.options import PASTE_MASKS
from mmdeploy_ext.families.common.query_networks import query_head
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.query import graphs, masks, postprocess, supported_parts
from mmdeploy_ext.families.query.facts import QueryFacts
from mmdeploy_ext.families.query.reference import (
    QueryMasksReference,
    QueryPanopticReference,
    QueryReference,
    QueryRegionsReference,
)
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.options import Options


def claims(cfg: Any) -> Claim:
    classes = (*supported_parts.DETECTORS, supported_parts.MASKFORMER, *supported_parts.REGION_DETECTORS)
    is_co_detr = supported_parts.is_co_detr(detector_parts.detector_of(cfg))
    return Claim.DETECTOR if is_co_detr or detector_parts.detects(cfg, classes) else Claim.NO


def check_network(cfg: Any, head: nn.Module, options: Options) -> None:
    detector_parts.check(cfg.model, options)
    if supported_parts.samples_points(head) and options.opset:
        detector_parts.check_grid_sample(type(head).__name__, options)


class QueryFamily(ImageFamily):
    name = 'query'
    task = 'bbox2d'
    forms = ('full',)
    reference = QueryReference
    untraced = (*ImageFamily.untraced, *supported_parts.UNTRACED)
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(image_graphs.feeds)
    claims = staticmethod(claims)

    def for_config(self, cfg: Any) -> ImageFamily:
        if detector_parts.detects(cfg, supported_parts.MASKFORMER):
            return MAPS if supported_parts.fuses(cfg) else INSTANCES
        if detector_parts.detects(cfg, supported_parts.REGION_DETECTORS):
            has_masks = detector_parts.part_cfg(cfg.model, 'roi_head').get('mask_head')
            return REGIONS_WITH_MASKS if has_masks else REGIONS
        return self

    def check(self, cfg: Any, options: Options) -> None:
        options.refuse([PASTE_MASKS], 'the results of this model have no masks')
        with refused_by_name(cfg):
            key = supported_parts.head_key(cfg)
            test_cfg = detector_parts.test_cfg_of(cfg, may_be_list=key == 'query_head')
            if key == 'query_head':
                supported_parts.check_co_detr(cfg.model, test_cfg)
                test_cfg = test_cfg[0]
            else:
                supported_parts.check_class(
                    DETECTORS.get(cfg.model.type), supported_parts.DETECTORS, 'detector'
                )
            head = detector_parts.tested_head(cfg, key, test_cfg)
            supported_parts.check_head(head)
            available = postprocess.pairs(head)
            if key == 'query_head' and postprocess.suppression_of(head):
                available = int(head.num_query)
            detector_parts.check_limit('max_per_img', postprocess.max_per_img(head), available)
        check_network(cfg, head, options)

    def build(self, cfg: Any) -> nn.Module:
        return super().build(copy.deepcopy(cfg))  # `DETRHead` writes a tensor into its config

    def facts(self, model: nn.Module) -> QueryFacts:
        head = query_head(model)
        return QueryFacts(num_classes=int(head.num_classes), max_per_img=postprocess.max_per_img(head))


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
    check_network(cfg, heads[0], options)
    return heads


class QueryMasksFamily(ImageFamily):
    name = 'query'
    task = 'mask'
    forms = ('full',)
    reference = QueryMasksReference
    untraced = QueryFamily.untraced
    spec, stages = staticmethod(graphs.masks_spec), staticmethod(graphs.masks_stages)
    feeds = staticmethod(image_graphs.mask_feeds)
    claims = staticmethod(claims)

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
    untraced = QueryFamily.untraced
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


@dataclasses.dataclass(eq=False, kw_only=True)
class QueryRegionsFamily(ImageFamily):
    task: str
    name = 'query'
    forms = ('full',)
    reference = QueryRegionsReference
    untraced = QueryFamily.untraced
    spec, stages = staticmethod(graphs.regions_spec), staticmethod(graphs.regions_stages)
    claims = staticmethod(claims)

    @property
    def with_masks(self) -> bool:
        return self.task == 'boxed_mask'

    def check(self, cfg: Any, options: Options) -> None:
        test_cfg = detector_parts.test_cfg_of(cfg).get('rcnn') or {}
        with refused_by_name(cfg):
            supported_parts.check_class(
                DETECTORS.get(cfg.model.type),
                supported_parts.REGION_DETECTORS,
                'detector of queries with regions',
            )
            heads = {key: detector_parts.tested_head(cfg, key, test_cfg) for key in ('rpn_head', 'roi_head')}
            supported_parts.check_region_heads(heads)
            pairs = heads['rpn_head'].num_proposals * heads['roi_head'].bbox_head[-1].num_classes
            detector_parts.check_limit('rcnn.max_per_img', test_cfg.get('max_per_img'), pairs)
            mask_thr = threshold(test_cfg) if self.with_masks else None
        detector_parts.check(cfg.model, options)
        if self.with_masks:
            pasting.check(mask_thr, options)
        else:
            options.refuse([PASTE_MASKS], 'the model has no mask_head')

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        make_feeds = image_graphs.feeds_with_sizes if self.with_masks else image_graphs.feeds
        return make_feeds(images, rescale)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.roi_head.bbox_head[-1].num_classes)

    def facts(self, model: nn.Module) -> QueryFacts:
        test_cfg = model.roi_head.test_cfg
        return QueryFacts(
            num_classes=self.num_classes(model),
            max_per_img=int(test_cfg.max_per_img),
            mask_thr=threshold(test_cfg) if self.with_masks else None,
        )


INSTANCES = QueryMasksFamily()
MAPS = QueryPanopticFamily()
REGIONS = QueryRegionsFamily(task='bbox2d')
REGIONS_WITH_MASKS = QueryRegionsFamily(task='boxed_mask')
