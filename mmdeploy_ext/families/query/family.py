"""The family of detectors of queries: what it claims and refuses, and what the other modules give.

What the attributes and methods of the classes without a docstring are for is documented where they are
defined first: `families/base.py` and `families/images.py`.
"""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.parts import detector_parts, image_graphs, pasting
from mmdeploy_ext.families.parts.mask_heads import threshold
from mmdeploy_ext.families.parts.mmdet_reference import box_detections, given_to
from mmdeploy_ext.families.parts.query_networks import NAMES, NETWORKS, TOKEN_SCORES, query_head
from mmdeploy_ext.families.query import (
    graphs,
    masks,
    postprocess,
    reference,
    supported_parts,
)
from mmdeploy_ext.families.query.facts import QueryFacts, QueryPanopticFacts
from mmdeploy_ext.preprocess.pictures import PreparedImage


class QueryFamily(ImageFamily):
    """Detectors of boxes by queries without regions: DETR, Deformable DETR, DINO, and a user's Co-DETR."""

    name = 'query'
    exports = 'DETR, Deformable DETR, DINO and Co-DINO (mmdeploy_ext/families/query/README.md)'
    similar_names = ('DETRHead', 'DeformableDETR', 'DINO', 'CoDETR', 'Transformer')
    task = 'bbox2d'
    forms = ('full',)
    untraced = (*ImageFamily.untraced, *supported_parts.UNTRACED)
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(image_graphs.feeds)
    reference_detections = staticmethod(box_detections)

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

    def borders(self, model: nn.Module) -> dict[str, Any]:
        if graphs.num_proposals(model):
            scores = NETWORKS[supported_parts.kind_of(query_head(model))].token_scores
            return {_token_branch(model): lambda calls: {TOKEN_SCORES: scores(calls[0])}}

        def last(calls: list[Any]) -> dict[str, Any]:
            sides = [side[-1] for side in calls[0][:2]]
            return {
                name: side if isinstance(side, torch.Tensor) and side.dim() == 3 else side[-1]
                for name, side in zip(NAMES, sides, strict=True)
            }

        return {f'{_head_name(model)}.forward': last}

    def substitutes(self, model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        given = [rows[None] for rows in given_to(model, tensors, NAMES).values()]
        if not given:
            return {}
        head = query_head(model)
        if supported_parts.kind_of(head) == 'DETRHead':
            outputs = tuple([rows] for rows in given)
        else:
            taken = [*inspect.signature(head.get_bboxes).parameters].index('img_metas')
            outputs = (*given, *[None] * (taken - len(NAMES)))
        return {'extract_feat': None, f'{_head_name(model)}.forward': outputs}

    def ranking(self, model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        head = query_head(model)
        if TOKEN_SCORES not in tensors or not head.with_box_refine:  # without, all layers share the branch
            return {}
        scores = given_to(model, tensors, [TOKEN_SCORES])[TOKEN_SCORES]
        return {_token_branch(model): scores[..., None].expand(-1, -1, head.cls_out_channels)}

    def facts(self, model: nn.Module) -> QueryFacts:
        head = query_head(model)
        return QueryFacts(postprocess.max_per_img(head), int(head.num_classes))


def _head_name(model: nn.Module) -> str:
    """Return the name of the head of queries in a detector."""
    return 'query_head' if hasattr(model, 'query_head') else 'bbox_head'


def _token_branch(model: nn.Module) -> str:
    """Return the path of what gives the logits (B, S, C) of all tokens, of which the best become queries."""
    last = query_head(model).transformer.decoder.num_layers
    return f'{_head_name(model)}.cls_branches.{last}.forward'


def substitutes_of_masks(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what the head of masks returns by the tensors of a file, see `ImageFamily.substitutes`."""
    outputs = tuple([queries] for queries in given_to(model, tensors, masks.NAMES).values())
    return {'extract_feat': None, 'panoptic_head.forward': outputs} if outputs else {}


def borders_of_masks(model: nn.Module) -> dict[str, Any]:
    """Return the border of the head of masks, see `ImageFamily.borders`.

    It is the head's last layer, or the pixel decoder, where queries look inside their masks alone.
    """
    if supported_parts.attends_inside_masks(model.panoptic_head):
        names = masks.pixel_names(model.panoptic_head)

        def pixels(calls: list[Any]) -> dict[str, Any]:
            features, sources = calls[0]
            return dict(zip(names, (features, *sources), strict=True))

        return {'panoptic_head.pixel_decoder.forward': pixels}

    def last(calls: list[Any]) -> dict[str, Any]:
        return dict(zip(masks.NAMES, (layers[-1] for layers in calls[0]), strict=True))

    return {'panoptic_head.forward': last}


def unjudged_of_masks(model: nn.Module) -> str:
    """Return which outputs of the head are not compared by themselves, see `ImageFamily.unjudged`."""
    if not supported_parts.attends_inside_masks(model.panoptic_head):
        return ''
    return (
        f'the tensors {" and ".join(masks.NAMES)} were not compared by themselves but by their results: '
        f'queries look inside their masks alone, so that a pixel at the threshold of a mask, which rounds, '
        f'changes them'
    )


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
    exports = 'Mask2Former, its instances (mmdeploy_ext/families/query/README.md)'
    similar_names = ('Mask2Former', 'MaskFormer')
    task = 'mask'
    forms = ('full',)
    untraced = (*ImageFamily.untraced, *supported_parts.UNTRACED)
    spec, stages = staticmethod(graphs.masks_spec), staticmethod(graphs.masks_stages)
    feeds, batches = staticmethod(image_graphs.mask_feeds), staticmethod(image_graphs.batches)
    reference_detections = staticmethod(reference.instances)
    substitutes, borders = staticmethod(substitutes_of_masks), staticmethod(borders_of_masks)
    unjudged = staticmethod(unjudged_of_masks)

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
    exports = 'Mask2Former, its panoptic maps (mmdeploy_ext/families/query/README.md)'
    similar_names = ('Mask2Former', 'MaskFormer')
    task = 'panoptic'
    forms = ('full', 'raw')
    untraced = (*ImageFamily.untraced, *supported_parts.UNTRACED)
    spec, stages = staticmethod(graphs.panoptic_spec), staticmethod(graphs.panoptic_stages)
    feeds, batches = staticmethod(image_graphs.mask_feeds), staticmethod(image_graphs.batches)
    reference_tensors = staticmethod(reference.mask_tensors)
    reference_detections = staticmethod(reference.segments)
    substitutes, borders = staticmethod(substitutes_of_masks), staticmethod(borders_of_masks)
    unjudged = staticmethod(unjudged_of_masks)

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
        exports: the models that it exports, and its page.
        similar_names: words in the names of similar detectors.
        task: module that matches its results.
        with_masks: whether their `roi_head` has a `mask_head`.
    """

    name: str
    exports: str
    similar_names: tuple[str, ...]
    task: str
    with_masks: bool
    forms = ('full',)
    untraced = (*ImageFamily.untraced, *supported_parts.UNTRACED)
    spec, stages = staticmethod(graphs.regions_spec), staticmethod(graphs.regions_stages)
    reference_detections = staticmethod(reference.regions)

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
    exports='Sparse R-CNN (mmdeploy_ext/families/query/README.md)',
    similar_names=('SparseRCNN', 'DIIHead', 'DynamicConv'),
    task='bbox2d',
    with_masks=False,
)
QUERY_REGIONS_MASKS = QueryRegionsFamily(
    name='query_regions_masks',
    exports='QueryInst (mmdeploy_ext/families/query/README.md)',
    similar_names=('QueryInst', 'DynamicMaskHead'),
    task='boxed_mask',
    with_masks=True,
)
"""It gives a mask of every box."""
