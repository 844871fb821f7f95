"""The parts of a LiDAR detector, whatever mmdet3d's class calls them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn


@dataclasses.dataclass(frozen=True)
class Parts:
    """From points to raw outputs; `neck` may be None."""

    prefix: str
    voxel_layer: nn.Module
    voxel_encoder: nn.Module
    middle_encoder: nn.Module
    backbone: nn.Module
    neck: nn.Module | None
    head: nn.Module


def prefix_of(model: Mapping[str, Any]) -> str:
    """Return what the names of a config's parts begin with: 'pts_' beside cameras' parts, or nothing."""
    return 'pts_' if 'pts_voxel_encoder' in model else ''


def parts_of(model: nn.Module) -> Parts:
    """Return the parts of a `CenterPoint`, `MVXFasterRCNN` or `VoxelNet`."""
    prefix = 'pts_' if hasattr(model, 'pts_voxel_encoder') else ''
    names = ('voxel_layer', 'voxel_encoder', 'middle_encoder', 'backbone', 'neck', 'bbox_head')
    return Parts(prefix, *(getattr(model, prefix + name, None) for name in names))
