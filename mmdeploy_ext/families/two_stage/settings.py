"""Reads `TwoStageFacts` from a built two-stage detector."""

import dataclasses

from torch import nn

from mmdeploy_ext.families.common import mask_heads, proposals
from mmdeploy_ext.families.common.regions import has_masks, roi_head_of
from mmdeploy_ext.families.two_stage import boxes, graphs
from mmdeploy_ext.families.two_stage.facts import TwoStageFacts
from mmdeploy_ext.families.two_stage.supported_parts import result_cfg
from mmdeploy_ext.spec.facts import plain


def num_classes(model: nn.Module) -> int:
    if hasattr(model, 'panoptic_fusion_head'):
        return int(model.panoptic_fusion_head.num_classes)
    roi_head = roi_head_of(model)
    head = proposals.last_stage(model.rpn_head) if roi_head is None else boxes.last_head(roi_head)
    return int(head.num_classes)


def facts_of(model: nn.Module) -> TwoStageFacts:
    rpn_thresholds = proposals.thresholds(model.rpn_head) if graphs.proposes(model) else None
    has_rois = roi_head_of(model) is not None
    thresholds = boxes.thresholds(result_cfg(model)) if has_rois else rpn_thresholds
    facts = TwoStageFacts(**plain(thresholds), num_classes=num_classes(model), proposals=rpn_thresholds)
    if hasattr(model, 'panoptic_fusion_head'):
        fusion = model.panoptic_fusion_head
        return dataclasses.replace(
            facts,
            mask_thr=mask_heads.threshold(result_cfg(model), 'panoptic'),
            num_things=int(fusion.num_things_classes),
            mask_overlap=float(fusion.test_cfg.mask_overlap),
            stuff_area_limit=int(fusion.test_cfg.stuff_area_limit),
        )
    if has_masks(model):
        return dataclasses.replace(facts, mask_thr=mask_heads.threshold(result_cfg(model)))
    return facts
