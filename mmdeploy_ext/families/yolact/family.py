"""YOLACT: supported configs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from mmdeploy_ext.base.config import refused_by_name
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.common.dense_heads import chosen_coder
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.yolact import graphs
from mmdeploy_ext.families.yolact.facts import YolactFacts
from mmdeploy_ext.families.yolact.graphs import facts_of
from mmdeploy_ext.families.yolact.reference import YolactReference
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module

dense_heads, detectors = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.models.detectors')


class YolactFamily(ImageFamily):
    name = 'yolact'
    task = 'boxed_mask'
    forms = ('full',)
    reference = YolactReference
    untraced = (
        *ImageFamily.untraced, 'mask_head.forward', 'crop', 'sanitize_coordinates', 'get_seg_masks',
    )  # fmt: skip
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)

    def claims(self, cfg: Any) -> Claim:
        return Claim.DETECTOR if detector_parts.detects(cfg, detectors.YOLACT) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        with refused_by_name(cfg):
            test_cfg = detector_parts.test_cfg_of(cfg)
            head = detector_parts.tested_head(cfg, 'bbox_head', test_cfg)
            _check_type('bbox_head', head, dense_heads.YOLACTHead)
            if chosen_coder(head).type == 'tblr':
                raise ConfigError(
                    f'model.bbox_head.bbox_coder.type={type(head.bbox_coder).__name__}: its boxes can '
                    'have a negative size, for which the graph and mmdet differ; this coder is not '
                    'supported'
                )
            facts = facts_of(head)
            # the smallest input has one cell a level, of which `nms_pre` leaves the best priors
            priors, nms_pre = head.prior_generator.num_base_priors, facts.nms_pre
            candidates = sum(min(count, nms_pre) if nms_pre > 0 else count for count in priors)
            most_results = facts.num_classes * min(facts.top_k, candidates)
            detector_parts.check_limit('max_per_img', facts.max_per_img, most_results)
            mask_head = detector_parts.built_head(cfg.model.get('mask_head') or {}, 'model.mask_head')
            _check_type('mask_head', mask_head, dense_heads.YOLACTProtonet)
        detector_parts.check(cfg.model, options)

    def facts(self, model: nn.Module) -> YolactFacts:
        return facts_of(model.bbox_head)

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        return image_graphs.mask_feeds(images, rescale) | image_graphs.feeds(images, rescale)


def _check_type(key: str, head: nn.Module, expected: type) -> None:
    if not isinstance(head, expected):
        raise ConfigError(f'model.{key}.type={type(head).__name__}: expected {expected.__name__}')
