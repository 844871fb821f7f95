"""The family of YOLACT: what it claims and refuses, and what the other modules give."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmdet.core.post_processing import bbox_nms
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.parts import detector_parts, followed
from mmdeploy_ext.families.parts.dense_heads import chosen_coder
from mmdeploy_ext.families.replaced import Replaced
from mmdeploy_ext.families.yolact import graphs, reference, samples
from mmdeploy_ext.families.yolact.postprocess import MASK_THR, thresholds

dense_heads, detectors = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.models.detectors')
HEADS = dict(bbox_head=dense_heads.YOLACTHead, mask_head=dense_heads.YOLACTProtonet)
FOLLOWED = (
    (detectors.YOLACT, followed.DETECTOR_METHODS),
    (dense_heads.YOLACTHead, ('simple_test', 'simple_test_bboxes', 'get_bboxes', '_get_bboxes_single')),
    (
        dense_heads.YOLACTProtonet,
        ('simple_test', 'forward', 'crop', 'sanitize_coordinates', 'get_seg_masks'),
    ),
    *followed.CODERS,
    *followed.FUNCTIONS,
    (bbox_nms, ('fast_nms',)),
)
"""See `Family.followed`."""


class YolactFamily(ImageFamily):
    """mmdet's `YOLACT`: anchors with coefficients of prototypes of masks."""

    name = 'yolact'
    exports = 'YOLACT (mmdeploy_ext/families/yolact/README.md)'
    near = ('YOLACT', 'Protonet')
    task = 'boxed_mask'
    forms = ('full',)
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds, batches = staticmethod(samples.feeds), staticmethod(samples.batches)
    reference_detections = staticmethod(reference.instances)

    followed = FOLLOWED

    def replaced(self, model: nn.Module) -> Iterator[Replaced]:
        """Yield the methods of the detector and of its heads."""
        yield from followed.replaced_of_class(model, FOLLOWED)
        yield from followed.replaced_in([model.bbox_head, model.mask_head], FOLLOWED)

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`: those of other parts are refused by `check`, by the part."""
        return Claim.DETECTOR if detector_parts.detects(cfg, detectors.YOLACT) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: parts, thresholds, sizes."""
        test_cfg = detector_parts.test_cfg_of(cfg)
        with refused_by_name(cfg):
            for key, upstream in HEADS.items():
                own = dict(train_cfg=None, test_cfg=test_cfg) if key == 'bbox_head' else {}
                head = detector_parts.built_head(dict(cfg.model.get(key) or {}, **own), f'model.{key}')
                if not isinstance(head, upstream):
                    raise ConfigError(f'model.{key}.type={type(head).__name__}: expected {upstream.__name__}')
                if key == 'bbox_head':
                    chosen_coder(head)
                    _check_limit(head, thresholds(test_cfg))
        detector_parts.check(cfg.model, options)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        found = thresholds(model.bbox_head.test_cfg)
        return dict(found, num_classes=self.num_classes(model), mask_thr=MASK_THR)


def _check_limit(head: nn.Module, config: Mapping[str, float]) -> None:
    """Refuse (ConfigError) more results than the smallest input, of one cell a level, can have."""
    of_class = min(int(config['top_k']), sum(head.prior_generator.num_base_priors))
    detector_parts.check_limit('max_per_img', config['max_per_img'], int(head.num_classes) * of_class)
