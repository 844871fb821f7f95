"""Detectors that predict the layers of their masks: supported configs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from mmdeploy_ext.base.config import refused_by_name
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts, image_graphs
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.instance import graphs
from mmdeploy_ext.families.instance.facts import InstanceFacts
from mmdeploy_ext.families.instance.reference import InstanceReference
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.models.instance_masks import InstanceMaskDetector


class InstanceFamily(ImageFamily):
    name = 'instance'
    task = 'boxed_mask'
    forms = ('full',)
    reference = InstanceReference
    untraced = (*ImageFamily.untraced, 'results', 'masks', 'maps')
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)

    def claims(self, cfg: Any) -> Claim:
        return Claim.DETECTOR if detector_parts.detects(cfg, InstanceMaskDetector) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        with refused_by_name(cfg):
            threshold = detector_parts.detector_of(cfg).threshold
            graphs.facts_of(detector_parts.test_cfg_of(cfg), threshold, num_classes=1)
        detector_parts.check(cfg.model, options)
        if options.height % graphs.MULTIPLE or options.width % graphs.MULTIPLE:
            raise UsageError(
                f'--shape {options.height} {options.width}: mask features need sizes that are multiples '
                f'of {graphs.MULTIPLE}'
            )

    def facts(self, model: nn.Module) -> InstanceFacts:
        return graphs.model_facts(model)

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        return image_graphs.mask_feeds(images, rescale) | image_graphs.feeds(images, rescale)
