"""The family of two-stage detectors: what it claims and refuses, and what the other modules give."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mmdet.models.builder import DETECTORS

from mmdeploy_ext.contract.families import two_stage, two_stage_masks
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.exporting.postprocess.nms_config import nms_config
from mmdeploy_ext.families.base import Claim, register_family
from mmdeploy_ext.families.images import ImageFamily
from projects.mmdet_plugin.dense import parts
from projects.mmdet_plugin.dense.samples import feeds
from projects.mmdet_plugin.two_stage import boxes, caps, graphs, masks, proposals, reference, samples
from projects.mmdet_plugin.two_stage.kinds import (
    KNOWN,
    check_detector,
    check_roi_head,
    result_cfg,
    result_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from mmdeploy_ext.contract.option import Options


class TwoStageFamily(ImageFamily):
    """mmdet's detectors that propose regions and look at each of them."""

    name = 'two_stage'
    exports = (
        'two-stage detectors with an rpn_head and a roi_head (projects/mmdet_plugin/two_stage/README.md)'
    )
    near = ('RCNN', 'RPN', 'RoIHead')
    task = 'bbox2d'
    proposes, with_masks = True, False
    forms = ('full',)
    own_options = two_stage.OPTIONS
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(feeds)
    reference_tensors = staticmethod(reference.tensors)
    reference_detections = staticmethod(reference.detections)
    candidate_bounds = staticmethod(reference.candidate_bounds)

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`: those of parts that are not exported are refused by `check`, by the part."""
        detector = DETECTORS.get(cfg.model.get('type') or '')
        two_stage = detector is not None and issubclass(detector, KNOWN)
        masks_too = bool((cfg.model.get('roi_head') or {}).get('mask_head'))
        known = (bool(cfg.model.get('rpn_head')), masks_too) == (self.proposes, self.with_masks)
        return Claim.HEAD if two_stage and known else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: parts, thresholds, sizes."""
        try:
            check_detector(cfg.model)
            heads = self.heads(cfg)
            if 'rpn_head' in heads:
                proposals.check_head(heads['rpn_head'])
            if 'roi_head' in heads:
                check_roi_head(heads['roi_head'])
                nms_config(heads['roi_head'].test_cfg)
        except ConfigError as error:
            raise ConfigError(f'{cfg.filename}: {error}') from error
        parts.check(cfg.model, options)
        if 'rpn_head' in heads:
            strides = heads['rpn_head'].prior_generator.strides
            parts.check_smallest((int(stride[0]) for stride in strides), options)
        if options.get('max_candidates') and result_key(DETECTORS.get(cfg.model.type)) == 'panoptic':
            raise UsageError('--max-candidates: panoptic detectors export without')
        caps.check(heads, options)

    def heads(self, cfg: Any) -> dict[str, nn.Module]:
        """Return key -> head of those that the config has, of proposals and of regions, without the rest.

        Raises:
            ConfigError: one cannot be built.
        """
        test_cfg = cfg.model.get('test_cfg') or cfg.get('test_cfg') or {}
        found = {}
        result = result_key(DETECTORS.get(cfg.model.type))
        for key, part in (('rpn_head', 'rpn'), ('roi_head', result)):
            if not cfg.model.get(key):
                continue
            content = dict(cfg.model[key], train_cfg=None, test_cfg=test_cfg.get(part))
            found[key] = parts.built_head(content, f'model.{key}')
        return found

    def num_classes(self, model: nn.Module) -> int:
        """See `Family.num_classes`."""
        roi_head = graphs.roi_head_of(model)
        return int((model.rpn_head if roi_head is None else boxes.last_head(roi_head)).num_classes)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """See `Family.postprocess_facts`."""
        found = dict(num_classes=self.num_classes(model))
        roi_head = graphs.roi_head_of(model)
        if self.proposes:
            found['proposals'] = proposals.thresholds(model.rpn_head).to_json()
        last = proposals.thresholds(model.rpn_head) if roi_head is None else nms_config(result_cfg(model))
        return last.to_json() | found

    @contextlib.contextmanager
    def raised_result_limit(self, model: nn.Module) -> Iterator[None]:
        """See `ImageFamily.raised_result_limit`."""
        config = result_cfg(model)
        most = config.max_per_img
        config.max_per_img = 2 * most if most > 0 else most
        try:
            yield
        finally:
            config.max_per_img = most


class TwoStageMasksFamily(TwoStageFamily):
    """Those that give a mask of every box."""

    name = 'two_stage_masks'
    exports = 'detectors with a mask_head in their roi_head (projects/mmdet_plugin/two_stage/README.md)'
    near = ('MaskRCNN', 'MaskHead')
    task = 'boxed_mask'
    with_masks = True
    own_options = two_stage_masks.OPTIONS
    feeds = staticmethod(samples.feeds_with_sizes)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """See `Family.postprocess_facts`."""
        return dict(super().postprocess_facts(model), mask_thr=masks.threshold(result_cfg(model)))


class GivenProposalsFamily(TwoStageFamily):
    """Those that look at regions which they are given."""

    name = 'two_stage_regions'
    exports = 'detectors with a roi_head alone (projects/mmdet_plugin/two_stage/README.md)'
    near = ('FastRCNN',)
    proposes = False
    own_options = ()
    feeds = staticmethod(samples.feeds_with_proposals)


register_family(TwoStageFamily())
register_family(GivenProposalsFamily())
register_family(TwoStageMasksFamily())
