"""What mask heads of regions are set to: the threshold and the size of their masks."""

from collections.abc import Mapping
from typing import Any

from mmdet.models.roi_heads import mask_heads
from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.suppression import number
from mmdeploy_ext.families.parts.regions import part_of


def threshold(test_cfg: Mapping[str, Any]) -> float:
    """Return `mask_thr_binary`, which masks have to reach.

    ConfigError: it is missing, no number, or below 0, where mmdet gives soft masks for viewing.
    """
    value = number('rcnn.mask_thr_binary', test_cfg.get('mask_thr_binary'), float)
    if value < 0:
        raise ConfigError(f'test_cfg.rcnn.mask_thr_binary={value}: expected 0 or more')
    return value


def side_of(roi_head: nn.Module) -> int | str:
    """Return the height and width of the masks in the frame of the box."""
    head = part_of(roi_head, 'mask_head', 0)
    if points_of(roi_head):
        return refined_side(roi_head)
    if isinstance(head, mask_heads.CoarseMaskHead):
        return int(head.output_size[0])
    pooled = part_of(roi_head, 'mask_roi_extractor', 0).roi_layers[0].output_size[0]
    shared = 2 if roi_head.with_shared_head else 1
    return pooled // shared * (int(head.scale_factor) if head.upsample is not None else 1)


def points_of(roi_head: nn.Module) -> nn.Module | None:
    """Return the head that looks at single points of regions, or None."""
    return getattr(roi_head, 'point_head', None)


def refined_side(roi_head: nn.Module) -> int:
    """Return the height and width of refined masks."""
    config = roi_head.test_cfg
    return int(roi_head.mask_head.output_size[0] * config.scale_factor**config.subdivision_steps)
