"""BEVFusion's neck before the view transform, and its bird's-eye view with cameras alone.

Glossary: S images, B samples, C channels, h, w cells of a level, X, Y cells of the bird's-eye view.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.resnet import BasicBlock, make_res_layer
from mmdet.models.builder import BACKBONES, NECKS
from torch import Tensor, nn

from mm2onnx_driving.bevfusion.model.view_transform import conv_block
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

BATCH_NORM, RELU = dict(type='BN2d'), dict(type='ReLU')
BILINEAR = dict(mode='bilinear', align_corners=True)
"""Default enlargement of maps; the published configs say `align_corners=False`."""


@registered_if_named(NECKS)
class GeneralizedLSSFPN(nn.Module):
    """Levels from the coarsest down: the map above is enlarged, joined, and convolved by 1x1 and 3x3.

    `num_outs` is unused, `start_level` must be 0 (ConfigError).

    Source: mit-han-lab/bevfusion db75150, models/necks/generalized_lss.py.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int = 0,
        start_level: int = 0,
        norm_cfg: Mapping[str, Any] | None = BATCH_NORM,
        act_cfg: Mapping[str, Any] | None = RELU,
        upsample_cfg: Mapping[str, Any] = BILINEAR,
    ) -> None:
        super().__init__()
        if start_level:
            raise ConfigError(f'GeneralizedLSSFPN: start_level={start_level}; expected 0')
        options = dict(norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.upsample_cfg = dict(upsample_cfg)
        self.lateral_convs, self.fpn_convs = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(in_channels[:-1]):
            above = in_channels[-1] if level == len(in_channels) - 2 else out_channels
            self.lateral_convs.append(ConvModule(channels + above, out_channels, 1, **options))
            self.fpn_convs.append(ConvModule(out_channels, out_channels, 3, padding=1, **options))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return (S, C, h, w) of every level but the last, the finest first."""
        levels = list(maps)
        for level in reversed(range(len(levels) - 1)):
            above = nn.functional.interpolate(
                levels[level + 1], size=levels[level].shape[2:], **self.upsample_cfg
            )
            joined = self.lateral_convs[level](torch.cat([levels[level], above], dim=1))
            levels[level] = self.fpn_convs[level](joined)
        return tuple(levels[:-1])


@registered_if_named(BACKBONES)
class GeneralizedResNet(nn.ModuleList):
    """Stages of residual blocks without a stem; `blocks` has (blocks, channels, stride) per stage.

    Source: mit-han-lab/bevfusion db75150, models/backbones/resnet.py.
    """

    def __init__(self, in_channels: int, blocks: Sequence[Sequence[int]]) -> None:
        channels = [in_channels, *(outside for _, outside, _ in blocks)]
        super().__init__(
            make_res_layer(BasicBlock, inside, outside, count, stride=stride)
            for inside, (count, outside, stride) in zip(channels, blocks, strict=False)
        )

    def forward(self, joint: Tensor) -> list[Tensor]:
        """Return the maps of all stages of (B, in_channels, X, Y)."""
        maps = []
        for stage in self:
            joint = stage(joint)
            maps.append(joint)
        return maps


@registered_if_named(NECKS)
class LSSFPN(nn.Module):
    """A coarse map enlarged to a fine map, joined, convolved, and enlarged again.

    Source: mit-han-lab/bevfusion db75150, models/necks/lss.py.
    """

    def __init__(
        self, in_indices: Sequence[int], in_channels: Sequence[int], out_channels: int, scale_factor: int = 1
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
        """Return a list of one map (B, C, X, Y), the fine map's size times `scale_factor`."""
        coarse, fine = (maps[index] for index in self.in_indices)
        above = nn.functional.interpolate(coarse, size=fine.shape[2:], mode='bilinear', align_corners=True)
        return [self.upsample(self.fuse(torch.cat([above, fine], 1)))]
