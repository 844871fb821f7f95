"""mmdet's detectors that two-stage families take: which configs are theirs or refused, and the models."""

import dataclasses
from typing import Any

from mmdet.models import build_detector
from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.parts import detector_parts, mask_heads, pasting, proposals
from mmdeploy_ext.families.two_stage import candidate_limits, split_graphs
from mmdeploy_ext.families.two_stage.supported_parts import (
    DETECTOR_CLASSES,
    check_detector,
    check_roi_head,
    result_key,
)
from mmdeploy_ext.models.building import build_without_weights


def heads_of(cfg: Any) -> dict[str, nn.Module]:
    """Return key ('rpn_head', 'roi_head') -> live head without weights, of those that the config has.

    ConfigError: one cannot be built.
    """
    test_cfg, result = detector_parts.test_cfg_of(cfg), result_key(DETECTORS.get(cfg.model.type))
    return {
        key: detector_parts.tested_head(cfg, key, test_cfg.get(part))
        for key, part in (('rpn_head', 'rpn'), ('roi_head', result))
        if cfg.model.get(key)
    }


def check_two_stage(cfg: Any, options: Options) -> None:
    """Refuse what does not export, before weights load; the heads are built alone.

    Args:
        cfg: the config.
        options: options of the export.

    Raises:
        ConfigError: a head, a part or a setting of one; the message names file and key.
        UsageError: an option that does not fit the model, such as a size or a limit.
    """
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
    candidate_limits.check(heads, options)
    with refused_by_name(cfg):
        split_graphs.check(heads, options)
    if options.get('paste_masks'):
        pasting.check(mask_heads.threshold(heads['roi_head'].test_cfg), options)


@dataclasses.dataclass(frozen=True)
class TwoStageModels:
    """mmdet's detectors with certain heads.

    Its methods are those of `Family` of the same names.

    Attributes:
        proposes: whether the detectors have an `rpn_head`; otherwise proposals are an input.
        with_masks: whether their `roi_head` has a `mask_head`.
    """

    proposes: bool = True
    with_masks: bool = False

    def claims(self, cfg: Any) -> Claim:
        """Return `HEAD` for detectors of mmdet with the same heads (`proposes`, `with_masks`), else `NO`."""
        if not detector_parts.detects(cfg, DETECTOR_CLASSES):
            return Claim.NO
        has_masks = bool(detector_parts.part_cfg(cfg.model, 'roi_head').get('mask_head'))
        parts = bool(cfg.model.get('rpn_head')), has_masks
        return Claim.HEAD if parts == (self.proposes, self.with_masks) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """Refuse what does not export, see `check_two_stage`."""
        check_two_stage(cfg, options)

    def build(self, cfg: Any) -> nn.Module:
        """Return the detector without weights, in evaluation mode; ConfigError: it cannot be built.

        The `init_cfg` and `pretrained` of its `backbone` become None in `cfg` itself, unless it cannot be
        built without them.
        """
        return build_without_weights(cfg, build_detector, 'backbone')
