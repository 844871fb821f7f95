"""The family of two-stage detectors of rotated boxes: which configs it claims and refuses.

What the attributes and methods of the class without a docstring are for is documented where they are
defined first: `families/images.py` and `families/base.py` of mm2onnx.
"""

import dataclasses
from typing import Any

from torch import nn

from mm2onnx_mmrotate.pipeline import as_mmdet
from mm2onnx_mmrotate.suppression import rotated_nms_config
from mm2onnx_mmrotate.two_stage import graphs, heads
from mm2onnx_mmrotate.two_stage.facts import RotatedTwoStageFacts
from mm2onnx_mmrotate.two_stage.proposals import proposals_of
from mm2onnx_mmrotate.two_stage.reference import RotatedTwoStageReference
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.images import Claim, ConfigError, ImageFamily, Options, PreprocessRule, UsageError
from mmdeploy_ext.families.regions import generator_of


class RotatedTwoStageFamily(ImageFamily):
    """mmrotate's detectors that propose regions and look at each of them."""

    name = 'rotated_two_stage'
    task = 'mm2onnx_mmrotate.task'
    forms = graphs.FORMS
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(image_graphs.feeds)
    untraced = (
        *ImageFamily.untraced, '.extract_feat', '_bbox_forward', 'regress_by_class', 'map_roi_levels',
        '*roi_extractor*.forward',
    )  # fmt: skip
    reference = RotatedTwoStageReference

    def claims(self, cfg: Any) -> Claim:
        """Claim every config of mmrotate's two-stage detectors."""
        return Claim.HEAD if detector_parts.detects(cfg, heads.DETECTOR) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        test_cfg = detector_parts.test_cfg_of(cfg)
        for key in ('rpn_head', 'roi_head'):
            if not cfg.model.get(key):
                raise ConfigError(f'model.{key} is missing; {cfg.model.type} needs one')
        rpn_head = detector_parts.tested_head(cfg, 'rpn_head', test_cfg.get('rpn'))
        roi_head = detector_parts.tested_head(cfg, 'roi_head', test_cfg.get('rcnn'))
        heads.check_rpn_head(rpn_head)
        heads.check_roi_head(roi_head, heads.is_oriented(rpn_head))
        proposals_of(rpn_head)
        rotated_nms_config(roi_head.test_cfg)
        last_head = heads.last_head(roi_head)
        if options.form == 'raw' and last_head.custom_cls_channels:
            raise UsageError(
                f'--postprocess raw: scores of {type(last_head.loss_cls).__name__} are no softmax of logits, '
                'which is what the runtime makes of a raw file; export decode or full'
            )
        detector_parts.check(cfg.model, options)
        strides = generator_of(rpn_head).strides
        detector_parts.check_smallest((int(stride[0]) for stride in strides), options)

    def preprocess_rule(self, cfg: Any) -> PreprocessRule:
        return super().preprocess_rule(as_mmdet(cfg))

    def num_classes(self, model: nn.Module) -> int:
        return int(heads.last_head(model.roi_head).num_classes)

    def facts(self, model: nn.Module) -> RotatedTwoStageFacts:
        coder = heads.coder_of(heads.last_head(model.roi_head))
        return RotatedTwoStageFacts(
            **dataclasses.asdict(rotated_nms_config(model.roi_head.test_cfg)),
            coder=coder,
            num_classes=self.num_classes(model),
            angle_version=coder.version,
        )
