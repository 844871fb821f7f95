"""Which parts of two-stage detectors export: classes of mmdet 2.28.2 whose methods the graphs repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdet.models import roi_heads
from mmdet.models.builder import DETECTORS
from mmdet.models.detectors import two_stage

from mmdeploy_ext.core.errors import ConfigError
from projects.mmdet_plugin.two_stage import boxes, masks
from projects.mmdet_plugin.two_stage.regions import check_extractor, part_of, stages_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

DETECTOR_METHODS = ('simple_test', 'extract_feat')
ROI_METHODS = ('simple_test', 'simple_test_bboxes', '_bbox_forward', 'simple_test_mask', '_mask_forward')
ROI_HEADS = (roi_heads.CascadeRoIHead, roi_heads.DoubleHeadRoIHead, roi_heads.StandardRoIHead)
"""Heads of regions; one that is derived from another keeps `ROI_METHODS`."""


def same_methods(own: type, upstream: type, methods: Iterable[str]) -> None:
    """Refuse a class with methods of its own where the graphs repeat those of `upstream`.

    Raises:
        ConfigError: names the method.
    """
    for name in methods:
        if getattr(own, name, None) is not getattr(upstream, name, None):
            raise ConfigError(
                f'{own.__name__} has a {name}() of its own, which the graphs do not repeat; expected that of '
                f'{upstream.__name__}'
            )


def check_detector(model: Mapping[str, Any]) -> None:
    """Refuse a detector whose test path is another; `model` is of the config.

    Raises:
        ConfigError: names the class and the method, or the part.
    """
    own = DETECTORS.get(model['type'])
    same_methods(own, two_stage.TwoStageDetector, DETECTOR_METHODS)
    for key in ('rpn_head', 'roi_head'):
        if not model.get(key):
            raise ConfigError(f'model.{key} is missing; two-stage detectors export with one')


def check_roi_head(roi_head: nn.Module) -> None:
    """Refuse a head of regions, or a part of it, that the graph does not repeat.

    Raises:
        ConfigError: names the part.
    """
    known = [one for one in ROI_HEADS if isinstance(roi_head, one)]
    if not known:
        raise ConfigError(
            f'model.roi_head.type={type(roi_head).__name__}: no head of regions that is exported'
        )
    same_methods(type(roi_head), known[0], ROI_METHODS)
    for stage in range(stages_of(roi_head)):
        check_extractor(part_of(roi_head, 'bbox_roi_extractor', stage))
        boxes.check_head(part_of(roi_head, 'bbox_head', stage))
        if roi_head.with_mask:
            check_extractor(part_of(roi_head, 'mask_roi_extractor', stage))
            masks.check_head(part_of(roi_head, 'mask_head', stage))
    if roi_head.with_mask:
        masks.threshold(roi_head.test_cfg)
