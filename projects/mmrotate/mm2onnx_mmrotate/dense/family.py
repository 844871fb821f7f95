"""The family of one-stage detectors of rotated boxes: which configs it claims and refuses.

What the attributes and methods of the class without a docstring are for is documented where they are
defined first: `families/images.py` and `families/base.py` of mm2onnx.
"""

import copy
from collections.abc import Mapping
from typing import Any

from mmdet.models.builder import HEADS
from mmrotate.models.dense_heads import CSLRRetinaHead, RotatedRetinaHead
from mmrotate.models.detectors import RotatedBaseDetector
from torch import nn

from mm2onnx_mmrotate.dense import graphs
from mm2onnx_mmrotate.dense.facts import RotatedDenseFacts
from mm2onnx_mmrotate.dense.kinds import kind_of_class
from mm2onnx_mmrotate.dense.networks import last_head
from mm2onnx_mmrotate.dense.reference import RotatedDenseReference
from mm2onnx_mmrotate.dense.settings import facts_of
from mm2onnx_mmrotate.pipeline import as_mmdet
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.heads import largest_num_candidates, level_shapes
from mmdeploy_ext.families.images import Claim, ConfigError, ImageFamily, Options, PreprocessRule


class RotatedDenseFamily(ImageFamily):
    """mmrotate's one-stage detectors."""

    name = 'rotated_dense'
    task = 'mm2onnx_mmrotate.task'
    forms = ('full', 'decode', 'raw')
    untraced = (
        *ImageFamily.untraced, 'filter_bboxes', 'refine_bboxes', 'points2rotrect', 'get_offset', 'rotate_arf',
        'distance2obb',
    )  # fmt: skip
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(image_graphs.feeds)
    reference = RotatedDenseReference

    def claims(self, cfg: Any) -> Claim:
        """Return `Claim.HEAD` if the last head of a detector of mmrotate is of an exported kind, else NO."""
        if not detector_parts.detects(cfg, RotatedBaseDetector):
            return Claim.NO
        *_, key = heads_of(cfg.model)
        head = HEADS.get(str(part_of(cfg.model, key).get('type')))
        return Claim.HEAD if isinstance(head, type) and kind_of_class(head) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        for key in heads_of(cfg.model):
            settings = dict(copy.deepcopy(part_of(cfg.model, key)), train_cfg=None)
            head = detector_parts.built_head(
                dict(settings, test_cfg=detector_parts.test_cfg_of(cfg)), f'model.{key}'
            )
            facts = facts_of(head)
        for key in heads_of(cfg.model)[:-1]:
            check_inner_head(key, part_of(cfg.model, key))
        detector_parts.check(cfg.model, options)
        detector_parts.check_smallest(facts.strides, options)
        shapes = level_shapes(options.height, options.width, facts.strides)
        detector_parts.check_max_candidates(options, largest_num_candidates(facts, shapes))

    def preprocess_rule(self, cfg: Any) -> PreprocessRule:
        return super().preprocess_rule(as_mmdet(cfg))

    def build(self, cfg: Any) -> nn.Module:
        """Build mmrotate's detector; its last head shares the `test_cfg` that the detector reads."""
        model = super().build(cfg)
        last_head(model).test_cfg = model.test_cfg
        return model

    def num_classes(self, model: nn.Module) -> int:
        return int(last_head(model).num_classes)

    def facts(self, model: nn.Module) -> RotatedDenseFacts:
        return facts_of(last_head(model))


def heads_of(model_cfg: Mapping[str, Any]) -> list[str]:
    """Return the keys of the heads of a config's `model`, in the order in which they run."""
    if 'odm_head' in model_cfg:
        return ['fam_head', 'odm_head']
    stages = range(len(model_cfg.get('refine_heads') or ()))
    return ['bbox_head', *(f'refine_heads.{stage}' for stage in stages)]


def part_of(model_cfg: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the entry of a config's `model` at a key of `heads_of`; empty if there is none."""
    name, _, index = key.partition('.')
    part = model_cfg.get(name)
    part = part[int(index)] if index else part
    return part if isinstance(part, Mapping) else {}


def check_inner_head(key: str, settings: Mapping[str, Any]) -> None:
    """Refuse (ConfigError) an inner head, one before the last, whose boxes are not made of deltas alone.

    A `RotatedRetinaHead` is taken, unless it has classes of angles. `key` is one of `heads_of`, `settings`
    its entry in the config.
    """
    head = HEADS.get(settings['type'])
    if not issubclass(head, RotatedRetinaHead) or issubclass(head, CSLRRetinaHead):
        raise ConfigError(f'model.{key} is {head.__name__}; expected a RotatedRetinaHead')
