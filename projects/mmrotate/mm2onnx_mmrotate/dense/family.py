"""The family of one-stage detectors of rotated boxes: which configs it claims and refuses."""

from collections.abc import Mapping
from typing import Any

from mmdet.models.builder import DETECTORS, HEADS
from torch import nn

from mm2onnx_mmrotate.dense import graphs, reference
from mm2onnx_mmrotate.dense.kinds import KINDS
from mm2onnx_mmrotate.dense.networks import last_head
from mm2onnx_mmrotate.dense.settings import facts_of, thresholds
from mm2onnx_mmrotate.pipeline import preprocess_rule
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.config import refused_by_name, test_pipeline
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.images import ImageFamily, ResultLimit
from mmdeploy_ext.families.limits import Limit
from mmdeploy_ext.families.parts import detector_parts, image_feeds
from mmdeploy_ext.preprocess.pictures import PreprocessRule

UNREAD = ('min_bbox_size',)
"""Entries of `test_cfg` that no head reads."""


class RotatedDenseFamily(ImageFamily):
    """mmrotate's one-stage detectors."""

    name = 'rotated_dense'
    exports = 'one-stage detectors of rotated boxes (projects/mmrotate/README.md)'
    similar_names = ('Rotated', 'R3Det', 'S2A', 'Oriented', 'KFIoU', 'CSL')
    task = 'mm2onnx_mmrotate.task'
    forms = ('full', 'decode', 'raw')
    tie_keys = ('iou_thr',)
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(image_feeds.feeds)
    reference_tensors = staticmethod(reference.tensors)
    reference_detections = staticmethod(reference.detections)
    candidate_bounds = staticmethod(reference.candidate_bounds)

    def claims(self, cfg: Any) -> Claim:
        """Claim every config of mmrotate's detectors whose only head is of a kind that is exported."""
        head = HEADS.get(detector_parts.part_cfg(cfg.model, 'bbox_head').get('type') or '')
        detector = DETECTORS.get(cfg.model.get('type') or '')
        if head is None or detector is None or not detector.__module__.startswith('mmrotate.'):
            return Claim.NO
        return Claim.HEAD if any(base.__name__ in KINDS for base in head.__mro__) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        with refused_by_name(cfg):
            head = detector_parts.tested_head(cfg, 'bbox_head', detector_parts.test_cfg_of(cfg))
            thresholds(head)
            facts = facts_of(head)
        detector_parts.check(cfg.model, options)
        detector_parts.check_smallest(facts['strides'], options)

    def preprocess_rule(self, cfg: Any) -> PreprocessRule:
        return preprocess_rule(test_pipeline(cfg))

    def num_classes(self, model: nn.Module) -> int:
        return int(last_head(model).num_classes)

    def result_limit(self, model: nn.Module) -> ResultLimit:
        return ResultLimit(last_head(model).test_cfg)

    def limits(self, model: nn.Module) -> list[Limit]:
        return [limit for limit in super().limits(model) if limit.key not in UNREAD]

    def trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        """Return the stages behind the network; its layers do not run, so that they are not folded."""
        return graphs.stages(model, options, fold=False)[1:], graphs.spec(model, options).outputs

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """Return what `dense/runtime.py` reads."""
        return thresholds(last_head(model)).to_json() | facts_of(last_head(model))

    def results_left_out(self, options: Mapping[str, Any]) -> str:
        if options.get('score_form') != 'product':
            return ''
        return (
            'score_form=product keeps no class scores, so detections are not compared: a threshold on the '
            'product is not the one that get_bboxes applies'
        )
