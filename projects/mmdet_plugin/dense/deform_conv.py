"""What mmdet 2.28's dense necks and heads do with deformable convolutions in a way that no exporter follows.

Each function looks whether a module is meant; they are registered below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdet.models.dense_heads import TOODHead
from mmdet.models.necks.dyhead import DyHeadBlock

from mmdeploy_ext.exporting.fold import PREPARATIONS
from mmdeploy_ext.exporting.ops.deform_conv import CALLERS, LeadingOffsets

if TYPE_CHECKING:
    import torch


def spell_out_leading_offsets(module: torch.nn.Module) -> None:
    """Put `LeadingOffsets` around the convolution of DyHead that takes the offsets of the level below."""
    if isinstance(module, DyHeadBlock):
        module.spatial_conv_high = LeadingOffsets(module.spatial_conv_high)


def fix_sampled_sides(module: torch.nn.Module) -> None:
    """Give TOOD's head kernels of fixed shape: traced, its own have that of a tensor."""
    if isinstance(module, TOODHead):
        module.deform_sampling = _sample_sides


def _sample_sides(boxes: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Read each side of boxes (B, 4, h, w) at its own offset (B, 8, h, w), y before x, in cells."""
    from mmcv.ops import deform_conv2d

    sides = 4
    return deform_conv2d(boxes, offset, boxes.new_ones((sides, 1, 1, 1)), 1, 0, 1, sides, sides)


PREPARATIONS += [spell_out_leading_offsets, fix_sampled_sides]
CALLERS.append(TOODHead)
