"""Monocular detectors: supported configs and models."""

from collections.abc import Callable
from typing import Any

import mmdet3d.datasets  # noqa: F401 - registers data sets and steps of pipelines
from mmdet3d.models import builder
from mmdet3d.models.dense_heads import FCOSMono3DHead, SMOKEMono3DHead
from mmdet3d.models.detectors import SingleStageMono3DDetector
from torch import nn

from mmdeploy_ext.base.config import refused_by_name, test_pipeline
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.monocular import cameras, graphs, smoke_graphs
from mmdeploy_ext.families.monocular.reference import MonocularReference
from mmdeploy_ext.runtime.preprocess.pipeline_rule import steps_of
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.models.building import build_without_weights, registered_class


def claim_of_head(cfg: Any, head_class: type) -> Claim:
    head = registered_class(builder.HEADS, detector_parts.part_cfg(cfg.model, 'bbox_head').get('type'))
    detector = registered_class(builder.DETECTORS, cfg.model.get('type'))
    if head is None or detector is None or not issubclass(detector, SingleStageMono3DDetector):
        return Claim.NO
    return Claim.DETECTOR if issubclass(head, head_class) else Claim.NO


def check_detector(cfg: Any, options: Options, check_head: Callable[[Any, nn.Module], None]) -> None:
    """Refuse a config that does not export; `check_head(config, head)` gets the head, built alone."""
    detector_parts.check_box_type(cfg, 'Camera')
    with refused_by_name(cfg):
        test_cfg = detector_parts.test_cfg_of(cfg)
        head = detector_parts.tested_head(cfg, 'bbox_head', test_cfg, builder.build_head)
        check_head(cfg, head)
    detector_parts.check(cfg.model, options)


def check_points_head(cfg: Any, head: nn.Module) -> None:
    detector_parts.check_rotated_limits(head.test_cfg or {}, 'max_per_img')
    if not head.bbox_coder.norm_on_bbox:
        raise ConfigError(
            'model.bbox_head.bbox_coder.norm_on_bbox=False is not supported, as in mmdet3d; expected True'
        )
    if list(steps_of(test_pipeline(cfg), 'Resize')):
        raise ConfigError(
            'test pipeline step Resize: mmdet3d cannot divide centres by its scale_factor; remove it'
        )


class MonocularMethods:
    """Methods of both families; derive from this class before `ImageFamily`."""

    task = 'mmdeploy_ext.families.monocular.task'
    reference = MonocularReference
    untraced = (
        *ImageFamily.untraced, 'bbox_head.forward', 'forward_single', 'decode_2d', 'decode_prob_depth',
        'decode_yaw', '_decode_depth', '_decode_location', '_decode_dimension', '_decode_orientation',
    )  # fmt: skip
    feeds = staticmethod(cameras.feeds)

    def build(self, cfg: Any) -> nn.Module:
        return build_without_weights(cfg, builder.build_detector, 'backbone')

    def check_dataset(self, cfg: Any, dataset: Any) -> None:
        if not list(steps_of(test_pipeline(cfg), 'LoadImageFromFileMono3D')):
            raise ConfigError(
                f'{cfg.filename}: data.test: its pipeline has no LoadImageFromFileMono3D, so images have '
                'no cam2img'
            )


class PointsFamily(MonocularMethods, ImageFamily):
    name = 'monocular'
    forms = ('full', 'decode', 'raw')
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    facts = staticmethod(graphs.facts_of)

    def claims(self, cfg: Any) -> Claim:
        return claim_of_head(cfg, FCOSMono3DHead)

    def check(self, cfg: Any, options: Options) -> None:
        check_detector(cfg, options, check_points_head)


def check_smoke_head(cfg: Any, head: nn.Module) -> None:
    if list(head.dim_channel) != [3, 4, 5] or list(head.ori_channel) != [6, 7]:
        raise ConfigError('model.bbox_head: expected dim_channel=[3, 4, 5] and ori_channel=[6, 7]')
    for step in steps_of(test_pipeline(cfg), 'AffineResize'):
        if (down_ratio := step.get('down_ratio')) != smoke_graphs.STRIDE:
            raise ConfigError(
                f'test pipeline step AffineResize: down_ratio={down_ratio}, expected '
                f'{smoke_graphs.STRIDE}, the stride of the maps'
            )


class SmokeFamily(MonocularMethods, ImageFamily):
    name = 'smoke'
    forms = ('full', 'raw')
    spec, stages = staticmethod(smoke_graphs.spec), staticmethod(smoke_graphs.stages)
    facts = staticmethod(smoke_graphs.facts_of)

    def claims(self, cfg: Any) -> Claim:
        return claim_of_head(cfg, SMOKEMono3DHead)

    def check(self, cfg: Any, options: Options) -> None:
        check_detector(cfg, options, check_smoke_head)
