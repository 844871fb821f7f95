"""The bird's-eye view of BEVFusion with cameras alone: residual stages, and the maps of two of them joined.

Glossary: B samples, C channels, X, Y cells of the bird's-eye view.
"""

from collections.abc import Sequence

import torch
from mmcv.cnn.resnet import BasicBlock, make_res_layer
from mmdet.models.builder import BACKBONES, NECKS
from torch import Tensor, nn

from projects.mmdet3d_plugin.bevfusion.view_transform import conv_block


@BACKBONES.register_module()
class GeneralizedResNet(nn.ModuleList):
    """Stages of residual blocks, without a stem.

    Args:
        in_channels: of the map.
        blocks: of each stage: how many, their channels, the stride of the first.

    Source: mit-han-lab/bevfusion db75150, models/backbones/resnet.py.
    """

    def __init__(self, in_channels: int, blocks: Sequence[Sequence[int]]) -> None:
        channels = [in_channels, *(one[1] for one in blocks)]
        super().__init__(
            make_res_layer(BasicBlock, inside, outside, count, stride=stride)
            for inside, (count, outside, stride) in zip(channels, blocks, strict=False)
        )

    def forward(self, joint: Tensor) -> list[Tensor]:
        """Return the maps of all stages of (B, in_channels, X, Y)."""
        found = []
        for stage in self:
            joint = stage(joint)
            found.append(joint)
        return found


@NECKS.register_module()
class LSSFPN(nn.Module):
    """A coarse map enlarged to a fine one, both joined and convolved; the result enlarged once more.

    Args:
        in_indices: of the backbone's maps, the coarse one first.
        in_channels: of these.
        out_channels: C.
        scale_factor: of the result, over the fine map; 1 leaves it.

    Source: mit-han-lab/bevfusion db75150, models/necks/lss.py.
    """

    def __init__(
        self,
        in_indices: Sequence[int],
        in_channels: Sequence[int],
        out_channels: int,
        scale_factor: int = 1,
    ) -> None:
        super().__init__()
        self.in_indices = tuple(in_indices)
        self.fuse = nn.Sequential(
            *conv_block(sum(in_channels), out_channels, 1, 1, bias=False),
            *conv_block(out_channels, out_channels, 3, 1, bias=False),
        )
        self.upsample: nn.Module = nn.Identity()
        if scale_factor > 1:
            enlarged = nn.Upsample(scale_factor=scale_factor, mode='bilinear', align_corners=True)
            last = conv_block(out_channels, out_channels, 3, 1, bias=False)
            self.upsample = nn.Sequential(enlarged, *last)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one map (B, C, X, Y)."""
        coarse, fine = (maps[index] for index in self.in_indices)
        above = nn.functional.interpolate(coarse, size=fine.shape[2:], mode='bilinear', align_corners=True)
        return [self.upsample(self.fuse(torch.cat([above, fine], 1)))]
