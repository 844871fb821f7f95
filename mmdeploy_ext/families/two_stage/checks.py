"""Which configs of two-stage detectors are refused."""

from typing import Any

from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.base.config import refused_by_name
from mmdeploy_ext.families.common import detector_parts, mask_heads, pasting, proposals
from mmdeploy_ext.families.common.options import PASTE_MASKS
from mmdeploy_ext.families.two_stage import candidate_limits, split_graphs
from mmdeploy_ext.families.two_stage.supported_parts import check_detector, check_roi_head, result_key
from mmdeploy_ext.spec.options import MAX_CANDIDATES, MAX_PROPOSALS, Options


def heads_of(cfg: Any) -> dict[str, nn.Module]:
    test_cfg, result = detector_parts.test_cfg_of(cfg), result_key(DETECTORS.get(cfg.model.type))
    return {
        key: detector_parts.tested_head(cfg, key, test_cfg.get(part))
        for key, part in (('rpn_head', 'rpn'), ('roi_head', result))
        if cfg.model.get(key)
    }


def check_two_stage(cfg: Any, options: Options) -> dict[str, nn.Module]:
    with refused_by_name(cfg):
        check_detector(cfg.model)
        heads = heads_of(cfg)
        if 'rpn_head' in heads:
            proposals.check_head(heads['rpn_head'])
        if 'roi_head' in heads:
            check_roi_head(heads['roi_head'], result_key(DETECTORS.get(cfg.model.type)))
    detector_parts.check(cfg.model, options)
    if 'rpn_head' in heads:
        strides = proposals.generator_of(heads['rpn_head']).strides
        detector_parts.check_smallest((int(stride[0]) for stride in strides), options)
        candidate_limits.check_proposals(heads['rpn_head'], options)
    else:
        options.refuse((MAX_CANDIDATES, MAX_PROPOSALS), 'proposals are an input of this model')
    candidate_limits.check(heads, options)
    with refused_by_name(cfg):
        split_graphs.check(heads, options)
    if not getattr(heads.get('roi_head'), 'with_mask', False):
        options.refuse([PASTE_MASKS], 'the model has no mask_head')
    elif options.paste_masks:
        pasting.check(mask_heads.threshold(heads['roi_head'].test_cfg), options)
    return heads
