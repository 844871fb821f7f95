"""What mmdet 2.28's DyHead does with deformable convolutions in a way that no exporter follows."""

import torch
from mmdet.models.necks.dyhead import DyHeadBlock

from mmdeploy_ext.exporting.fold import PREPARATIONS
from mmdeploy_ext.exporting.ops.deform_conv import LeadingOffsets


def spell_out_leading_offsets(module: torch.nn.Module) -> None:
    """Put `LeadingOffsets` around the convolution of DyHead that takes the offsets of the level below."""
    if isinstance(module, DyHeadBlock):
        module.spatial_conv_high = LeadingOffsets(module.spatial_conv_high)


PREPARATIONS.append(spell_out_leading_offsets)
