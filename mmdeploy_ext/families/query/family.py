"""The family of detectors of queries: what it claims and refuses, and what the other modules give."""

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.images import ImageFamily, ResultLimit
from mmdeploy_ext.families.limits import Kind, Limit
from mmdeploy_ext.families.parts import detector_parts, pasting
from mmdeploy_ext.families.parts.exaggerated import changed_outputs
from mmdeploy_ext.families.parts.image_feeds import feeds_with_sizes
from mmdeploy_ext.families.parts.mask_heads import threshold
from mmdeploy_ext.families.parts.query_networks import query_head
from mmdeploy_ext.families.parts.regions import last_level_side
from mmdeploy_ext.families.query import (
    graphs,
    kinds,
    masks,
    panoptic,
    postprocess,
    reference,
    regions,
    samples,
)

SIZES = 4.0
"""What widths and heights of some regions are multiplied by, and of others divided by."""


class QueryFamily(ImageFamily):
    """mmdet's detectors whose decoder asks the same queries of every image."""

    name = 'query'
    exports = 'DETR, Deformable DETR, DINO and Co-DINO (mmdeploy_ext/families/query/README.md)'
    near = ('DETRHead', 'DeformableDETR', 'DINO', 'CoDETR', 'Transformer')
    task = 'bbox2d'
    followed, replaced = kinds.FOLLOWED, staticmethod(kinds.replaced_methods)
    forms = ('full',)
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(samples.feeds)
    reference_detections = staticmethod(reference.detections)

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`: those of other parts are refused by `check`, by the part."""
        co_detr = kinds.is_co_detr(detector_parts.detector_of(cfg))
        return Claim.DETECTOR if co_detr or detector_parts.detects(cfg, kinds.DETECTORS) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: parts, opset, limits."""
        with refused_by_name(cfg):
            key, test_cfg = kinds.head_key(cfg), detector_parts.test_cfg_of(cfg)
            if key == 'query_head':
                kinds.check_co_detr(cfg.model)
                test_cfg = test_cfg[0]
            else:
                kinds.check_class(DETECTORS.get(cfg.model.type), kinds.DETECTORS, 'detector')
            head = detector_parts.tested_head(cfg, key, test_cfg)
            kinds.check_head(head)
            available = postprocess.pairs(head)
            if key == 'query_head' and postprocess.suppression_of(head):
                available = int(head.num_query)
            detector_parts.check_limit('max_per_img', postprocess.max_per_img(head), available)
        detector_parts.check(cfg.model, options)
        if kinds.samples_points(head) and options.opset:
            detector_parts.check_grid_sample(type(head).__name__, options)

    def build(self, cfg: Any) -> nn.Module:
        """See `Family.build`: of a copy of the config, since `DETRHead` writes a tensor into its own."""
        return super().build(copy.deepcopy(cfg))

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        head = query_head(model)
        return dict(max_per_img=postprocess.max_per_img(head), num_classes=int(head.num_classes))

    def sizes_choose_levels(self, model: nn.Module) -> bool:
        """Return whether tokens of all levels become queries, each as a box of the size of its level."""
        return bool(graphs.proposals(model))

    def finds_always(self, model: nn.Module) -> bool:
        """See `ImageFamily.finds_always`: the best pairs have no threshold, unless they are suppressed."""
        return not (hasattr(model, 'query_head') and query_head(model).test_cfg.get('nms'))

    def result_limit(self, model: nn.Module) -> ResultLimit:
        head = query_head(model)
        suppressed = not self.finds_always(model)
        return ResultLimit(
            head.test_cfg,
            default=postprocess.max_per_img(head),
            available=int(head.num_query) if suppressed else postprocess.pairs(head),
        )

    def limits(self, model: nn.Module) -> list[Limit]:
        """Return the limits of the head of queries; those heads that train Co-DETR give no results."""
        results = query_head(model).test_cfg
        entries = (results, results.get('nms'))
        return [limit for limit in super().limits(model) if any(limit.config is one for one in entries)]


class QueryMasksFamily(ImageFamily):
    """mmdet's detectors whose queries have masks, where these are instances."""

    name = 'query_masks'
    exports = 'Mask2Former, its instances (mmdeploy_ext/families/query/README.md)'
    near = ('Mask2Former', 'MaskFormer')
    task = 'mask'
    fuses = False
    followed, replaced = kinds.FOLLOWED, staticmethod(kinds.replaced_methods)
    forms = ('full',)
    spec, stages = staticmethod(graphs.masks_spec), staticmethod(graphs.masks_stages)
    feeds, batches = staticmethod(samples.mask_feeds), staticmethod(samples.batches)
    reference_detections = staticmethod(reference.instances)

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`: those of other parts are refused by `check`, by the part."""
        known = detector_parts.detects(cfg, kinds.MASKFORMER)
        return Claim.DETECTOR if known and kinds.fuses(cfg) == self.fuses else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: parts, opset, limits."""
        with refused_by_name(cfg):
            kinds.check_class(
                DETECTORS.get(cfg.model.type), kinds.MASK_DETECTORS, 'detector of masks by queries'
            )
            heads = [
                detector_parts.tested_head(cfg, key, detector_parts.test_cfg_of(cfg))
                for key in ('panoptic_head', 'panoptic_fusion_head')
            ]
            kinds.check_mask_heads(*heads)
            self.check_results(*heads)
        detector_parts.check(cfg.model, options)
        if kinds.samples_points(heads[0]) and options.opset:
            detector_parts.check_grid_sample(type(heads[0]).__name__, options)

    def check_results(self, head: nn.Module, fusion: nn.Module) -> None:
        """Refuse heads that do not give these results, or not as many."""
        kinds.check_instances(fusion)
        detector_parts.check_limit(
            'max_per_image', masks.max_per_image(fusion), head.num_queries * head.num_classes
        )

    def num_classes(self, model: nn.Module) -> int:
        """See `Family.num_classes`: of things."""
        return int(model.panoptic_head.num_things_classes)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        most = masks.max_per_image(model.panoptic_fusion_head)
        return dict(max_per_img=most, num_classes=self.num_classes(model))

    def finds_always(self, model: nn.Module) -> bool:
        """See `ImageFamily.finds_always`: the best pairs of query and class have no threshold."""
        return True

    def result_limit(self, model: nn.Module) -> ResultLimit:
        head, fusion = model.panoptic_head, model.panoptic_fusion_head
        return ResultLimit(
            fusion.test_cfg,
            'max_per_image',
            default=masks.max_per_image(fusion),
            available=int(head.num_queries) * int(head.num_classes),
        )


class QueryPanopticFamily(QueryMasksFamily):
    """mmdet's detectors whose queries have masks, fused into a panoptic map."""

    name = 'query_panoptic'
    exports = 'Mask2Former, its panoptic maps (mmdeploy_ext/families/query/README.md)'
    task = 'panoptic'
    fuses = True
    forms = ('full', 'raw')
    keep_fp32 = ('fusion/*',)  # numbers of pixels are larger than float16 has
    tie_keys = (*ImageFamily.tie_keys, 'object_mask_thr', 'iou_thr')
    spec, stages = staticmethod(graphs.panoptic_spec), staticmethod(graphs.panoptic_stages)
    reference_tensors = staticmethod(reference.mask_tensors)
    reference_detections = staticmethod(reference.segments)

    def check_results(self, head: nn.Module, fusion: nn.Module) -> None:
        """See `QueryMasksFamily`: there is no limit of segments."""
        kinds.check_panoptic(head, fusion)

    def num_classes(self, model: nn.Module) -> int:
        """See `Family.num_classes`: of things and of stuff."""
        return int(model.panoptic_fusion_head.num_classes)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        return panoptic.facts_of(model.panoptic_fusion_head)

    def limits(self, model: nn.Module) -> list[Limit]:
        """See `ImageFamily.limits`: of the fusion, with the defaults that mmdet has for them."""
        config = model.panoptic_fusion_head.test_cfg
        return [
            Limit(config, 'object_mask_thr', Kind.SCORE, default=0.8),
            Limit(config, 'iou_thr', Kind.SHARE, default=0.8),
            Limit(config, 'filter_low_score', Kind.SWITCH, default=False),
        ]

    def finds_always(self, model: nn.Module) -> bool:
        """See `ImageFamily.finds_always`: queries have a threshold here."""
        return False

    def result_limit(self, model: nn.Module) -> ResultLimit:
        """See `ImageFamily.result_limit`: none."""
        return ResultLimit({})


def _of_all_sizes(stds: Sequence[float]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what changes deltas (..., 4) of queries: the sizes of some are larger, of others smaller."""

    def change(deltas: torch.Tensor) -> torch.Tensor:
        places = torch.arange(deltas[..., 0].numel(), device=deltas.device) % 3
        sizes = (1 - places).to(deltas) * math.log(SIZES)
        changed = deltas.reshape(-1, 4).clone()
        changed[:, 2:] += sizes[:, None] / deltas.new_tensor(stds[2:])
        return changed.reshape(deltas.shape)

    return change


class QueryRegionsFamily(ImageFamily):
    """mmdet's detectors whose queries have regions of their own, which stages move."""

    name = 'query_regions'
    exports = 'Sparse R-CNN (mmdeploy_ext/families/query/README.md)'
    near = ('SparseRCNN', 'DIIHead', 'DynamicConv')
    task = 'bbox2d'
    with_masks = False
    followed, replaced = kinds.FOLLOWED, staticmethod(kinds.replaced_methods)
    forms = ('full',)
    keep_fp32 = ('network/[!bn]*', 'postprocess/*')  # all but backbone and neck, as of two-stage detectors
    spec, stages = staticmethod(graphs.regions_spec), staticmethod(graphs.regions_stages)
    feeds = staticmethod(samples.feeds)
    reference_detections = staticmethod(reference.regions)

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`: those of other parts are refused by `check`, by the part."""
        known = detector_parts.detects(cfg, kinds.REGION_DETECTORS)
        masks_too = bool(detector_parts.part_cfg(cfg.model, 'roi_head').get('mask_head'))
        return Claim.DETECTOR if known and masks_too == self.with_masks else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: parts, limits."""
        test_cfg = detector_parts.test_cfg_of(cfg).get('rcnn') or {}
        with refused_by_name(cfg):
            kinds.check_class(
                DETECTORS.get(cfg.model.type), kinds.REGION_DETECTORS, 'detector of queries with regions'
            )
            found = {key: detector_parts.tested_head(cfg, key, test_cfg) for key in ('rpn_head', 'roi_head')}
            kinds.check_region_heads(found)
            there = found['rpn_head'].num_proposals * found['roi_head'].bbox_head[-1].num_classes
            detector_parts.check_limit('rcnn.max_per_img', test_cfg.get('max_per_img'), there)
            least = threshold(test_cfg) if self.with_masks else 0.0
        detector_parts.check(cfg.model, options)
        pasting.check(least, options)

    def num_classes(self, model: nn.Module) -> int:
        return int(model.roi_head.bbox_head[-1].num_classes)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        return dict(max_per_img=int(model.roi_head.test_cfg.max_per_img), num_classes=self.num_classes(model))

    def finds_always(self, model: nn.Module) -> bool:
        """See `ImageFamily.finds_always`: the best pairs of query and class have no threshold."""
        return True

    def result_limit(self, model: nn.Module) -> ResultLimit:
        return ResultLimit(model.roi_head.test_cfg, available=regions.pairs(model))

    def sizes_choose_levels(self, model: nn.Module) -> bool:
        """Return True: queries look at regions on the level of their size."""
        return True

    def last_level_side(self, model: nn.Module) -> float:
        return last_level_side(model.roi_head)

    def exaggerated(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Let the first stage make regions of all sizes, so that later ones look at every level."""
        first = model.roi_head.bbox_head[0]
        return changed_outputs(first.fc_reg, _of_all_sizes(first.bbox_coder.stds))


class QueryRegionsMasksFamily(QueryRegionsFamily):
    """Those that give a mask of every box."""

    name = 'query_regions_masks'
    exports = 'QueryInst (mmdeploy_ext/families/query/README.md)'
    near = ('QueryInst', 'DynamicMaskHead')
    task = 'boxed_mask'
    with_masks = True
    feeds = staticmethod(feeds_with_sizes)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        return dict(super().postprocess_facts(model), mask_thr=threshold(model.roi_head.test_cfg))
