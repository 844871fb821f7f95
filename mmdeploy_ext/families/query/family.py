"""The family of detectors of queries: what it claims and refuses, and what the other modules give.

What the attributes and methods of the classes without a docstring are for is documented where they are
defined first: `families/base.py` and `families/images.py`.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.parts import detector_parts, image_graphs, pasting
from mmdeploy_ext.families.parts.mask_heads import threshold
from mmdeploy_ext.families.parts.query_networks import query_head
from mmdeploy_ext.families.query import (
    graphs,
    masks,
    postprocess,
    supported_parts,
)
from mmdeploy_ext.families.query.facts import QueryFacts, QueryPanopticFacts
from mmdeploy_ext.families.query.reference import (
    QueryMasksReference,
    QueryPanopticReference,
    QueryReference,
    QueryRegionsReference,
)
from mmdeploy_ext.preprocess.pictures import PreparedImage


class QueryFamily(ImageFamily):
    """Detectors of boxes by queries without regions: DETR, Deformable DETR, DINO, and a user's Co-DETR."""

    name = 'query'
    task = 'bbox2d'
    forms = ('full',)
    reference = QueryReference
    untraced = (*ImageFamily.untraced, *supported_parts.UNTRACED)
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(image_graphs.feeds)

    def claims(self, cfg: Any) -> Claim:
        co_detr = supported_parts.is_co_detr(detector_parts.detector_of(cfg))
        return (
            Claim.DETECTOR if co_detr or detector_parts.detects(cfg, supported_parts.DETECTORS) else Claim.NO
        )

    def check(self, cfg: Any, options: Options) -> None:
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
        detector_parts.check(cfg.model, options)
        if supported_parts.samples_points(head) and options.opset:
            detector_parts.check_grid_sample(type(head).__name__, options)

    def build(self, cfg: Any) -> nn.Module:
        return super().build(copy.deepcopy(cfg))  # `DETRHead` writes a tensor into its config

    def facts(self, model: nn.Module) -> QueryFacts:
        head = query_head(model)
        return QueryFacts(postprocess.max_per_img(head), int(head.num_classes))


def claim_of_masks(cfg: Any, fuses: bool) -> Claim:
    """Return the claim of a family of queries with masks; `fuses` is whether it makes panoptic maps."""
    if not detector_parts.detects(cfg, supported_parts.MASKFORMER):
        return Claim.NO
    return Claim.DETECTOR if supported_parts.fuses(cfg) == fuses else Claim.NO


def check_masks(cfg: Any, options: Options, check_results: Callable[[nn.Module, nn.Module], None]) -> None:
    """Refuse (ConfigError, UsageError) detectors of queries with masks, and options, that do not export.

    `check_results` refuses heads without the results of the family; it takes the `panoptic_head` and the
    `panoptic_fusion_head`.
    """
    with refused_by_name(cfg):
        supported_parts.check_class(
            DETECTORS.get(cfg.model.type), supported_parts.MASK_DETECTORS, 'detector of masks by queries'
        )
        heads = [
            detector_parts.tested_head(cfg, key, detector_parts.test_cfg_of(cfg))
            for key in ('panoptic_head', 'panoptic_fusion_head')
        ]
        supported_parts.check_mask_heads(*heads)
        check_results(*heads)
    detector_parts.check(cfg.model, options)
    if supported_parts.samples_points(heads[0]) and options.opset:
        detector_parts.check_grid_sample(type(heads[0]).__name__, options)


def check_instances(head: nn.Module, fusion: nn.Module) -> None:
    """Refuse (ConfigError) heads without instances, or with fewer pairs of query and class than their limit.

    A limit that is no whole number from 1 is refused, too. `head` is the `panoptic_head`, `fusion` the
    `panoptic_fusion_head`.
    """
    supported_parts.check_instances(fusion)
    detector_parts.check_limit(
        'max_per_image', masks.max_per_image(fusion), head.num_queries * head.num_classes
    )


def check_panoptic(head: nn.Module, fusion: nn.Module) -> None:
    """Refuse (ConfigError) heads of panoptic maps that are not exported, and thresholds that are no numbers.

    `head` is the `panoptic_head`, `fusion` the `panoptic_fusion_head`; see `supported_parts.check_panoptic`.
    """
    supported_parts.check_panoptic(head, fusion)
    masks.facts_of(fusion)


class QueryMasksFamily(ImageFamily):
    """mmdet's detectors whose queries have masks, of which their configs make instances."""

    name = 'query_masks'
    task = 'mask'
    forms = ('full',)
    reference = QueryMasksReference
    untraced = (*ImageFamily.untraced, *supported_parts.UNTRACED)
    spec, stages = staticmethod(graphs.masks_spec), staticmethod(graphs.masks_stages)
    feeds = staticmethod(image_graphs.mask_feeds)

    def claims(self, cfg: Any) -> Claim:
        return claim_of_masks(cfg, fuses=False)

    def check(self, cfg: Any, options: Options) -> None:
        check_masks(cfg, options, check_instances)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.panoptic_head.num_things_classes)

    def facts(self, model: nn.Module) -> QueryFacts:
        return QueryFacts(masks.max_per_image(model.panoptic_fusion_head), self.num_classes(model))


class QueryPanopticFamily(ImageFamily):
    """mmdet's detectors whose queries have masks, fused into a panoptic map."""

    name = 'query_panoptic'
    task = 'panoptic'
    forms = ('full', 'raw')
    reference = QueryPanopticReference
    untraced = (*ImageFamily.untraced, *supported_parts.UNTRACED)
    spec, stages = staticmethod(graphs.panoptic_spec), staticmethod(graphs.panoptic_stages)
    feeds = staticmethod(image_graphs.mask_feeds)

    def claims(self, cfg: Any) -> Claim:
        return claim_of_masks(cfg, fuses=True)

    def check(self, cfg: Any, options: Options) -> None:
        check_masks(cfg, options, check_panoptic)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.panoptic_fusion_head.num_classes)  # things and stuff

    def facts(self, model: nn.Module) -> QueryPanopticFacts:
        return masks.facts_of(model.panoptic_fusion_head)


@dataclasses.dataclass(eq=False, kw_only=True)
class QueryRegionsFamily(ImageFamily):
    """mmdet's detectors whose queries have regions of their own, which stages move; instances are below.

    Attributes:
        name: name of the family.
        task: module that matches its results.
        with_masks: whether their `roi_head` has a `mask_head`.
    """

    name: str
    task: str
    with_masks: bool
    forms = ('full',)
    reference = QueryRegionsReference
    untraced = (*ImageFamily.untraced, *supported_parts.UNTRACED)
    spec, stages = staticmethod(graphs.regions_spec), staticmethod(graphs.regions_stages)

    def claims(self, cfg: Any) -> Claim:
        if not detector_parts.detects(cfg, supported_parts.REGION_DETECTORS):
            return Claim.NO
        has_masks = bool(detector_parts.part_cfg(cfg.model, 'roi_head').get('mask_head'))
        return Claim.DETECTOR if has_masks == self.with_masks else Claim.NO

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
            mask_thr = threshold(test_cfg) if self.with_masks else 0.0
        detector_parts.check(cfg.model, options)
        pasting.check(mask_thr, options)

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        make_feeds = image_graphs.feeds_with_sizes if self.with_masks else image_graphs.feeds
        return make_feeds(images, rescale)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.roi_head.bbox_head[-1].num_classes)

    def facts(self, model: nn.Module) -> QueryFacts:
        test_cfg = model.roi_head.test_cfg
        mask_thr = threshold(test_cfg) if self.with_masks else None
        return QueryFacts(int(test_cfg.max_per_img), self.num_classes(model), mask_thr)


QUERY_REGIONS = QueryRegionsFamily(
    name='query_regions',
    task='bbox2d',
    with_masks=False,
)
QUERY_REGIONS_MASKS = QueryRegionsFamily(
    name='query_regions_masks',
    task='boxed_mask',
    with_masks=True,
)
"""It gives a mask of every box."""
