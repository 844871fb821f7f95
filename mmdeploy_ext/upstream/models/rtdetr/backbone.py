"""PResNet, variant d: the ResNet of RT-DETR, with the original's parameter names.

Source: lyuwenyu/RT-DETR 068dfde, rtdetr_pytorch/src/nn/backbone/presnet.py.
Glossary: B images, H, W their height and width, C channels, h, w map size.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from mmcv.runner import BaseModule
from mmdet.models.builder import BACKBONES
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.rtdetr.encoder import ConvNorm

STAGE_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
NUM_RETURNED = 3


class ResidualBlock(nn.Module):
    """Base of both blocks: the shortcut, projected by the first block of a stage."""

    expansion = 1

    def __init__(self, in_channels: int, out_channels: int, stride: int, first: bool, frozen: bool) -> None:
        super().__init__()
        self.short: nn.Module | None = None
        if first:
            self.short = ConvNorm(in_channels, out_channels, 1, frozen=frozen)
            if stride == 2:
                pool = nn.AvgPool2d(2, 2, 0, ceil_mode=True)
                self.short = nn.Sequential(OrderedDict(pool=pool, conv=self.short))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, h / stride, w / stride), rounded up, of maps (B, in_channels, h, w)."""
        short = features if self.short is None else self.short(features)
        for name, layer in self.named_children():
            features = features if name == 'short' else layer(features)
        return F.relu(features + short)


class BasicBlock(ResidualBlock):
    def __init__(self, in_channels: int, width: int, stride: int, first: bool, frozen: bool) -> None:
        super().__init__(in_channels, width, stride, first, frozen)
        self.branch2a = ConvNorm(in_channels, width, 3, stride, 'relu', frozen)
        self.branch2b = ConvNorm(width, width, 3, frozen=frozen)


class Bottleneck(ResidualBlock):
    """1x1, 3x3 with the stride, 1x1 to four times the width."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, first: bool, frozen: bool) -> None:
        super().__init__(in_channels, 4 * width, stride, first, frozen)
        self.branch2a = ConvNorm(in_channels, width, 1, 1, 'relu', frozen)
        self.branch2b = ConvNorm(width, width, 3, stride, 'relu', frozen)
        self.branch2c = ConvNorm(width, 4 * width, 1, frozen=frozen)


class Stage(nn.Module):
    """`count` blocks of the class `kind` and of one width; the first has the stride."""

    def __init__(
        self, kind: type[ResidualBlock], in_channels: int, width: int, count: int, stride: int, frozen: bool
    ) -> None:
        super().__init__()
        out_channels = kind.expansion * width
        self.blocks = nn.ModuleList(
            kind(
                out_channels if index else in_channels,
                width,
                stride=1 if index else stride,
                first=index == 0,
                frozen=frozen,
            )
            for index in range(count)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            features = block(features)
        return features


@registered_if_named(BACKBONES)
class PResNet(BaseModule):
    """ResNet-vd; returns its last three stages (strides 8, 16, 32).

    Attributes:
        out_channels: channels of the three maps, the finest first.
    """

    def __init__(
        self,
        depth: int,
        freeze_norm: bool = False,
        freeze_stem: bool = False,
        base_channels: int = 64,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if depth not in STAGE_BLOCKS:
            raise ConfigError(f'PResNet depth={depth}: expected one of {", ".join(map(str, STAGE_BLOCKS))}')
        block_class = Bottleneck if depth >= 50 else BasicBlock
        half = base_channels // 2
        self.conv1 = nn.Sequential(
            OrderedDict(
                conv1_1=ConvNorm(3, half, 3, 2, 'relu', freeze_norm),
                conv1_2=ConvNorm(half, half, 3, 1, 'relu', freeze_norm),
                conv1_3=ConvNorm(half, base_channels, 3, 1, 'relu', freeze_norm),
            )
        )
        widths = [base_channels * 2**stage for stage in range(4)]
        sources = [base_channels, *(block_class.expansion * width for width in widths[:-1])]
        self.res_layers = nn.ModuleList(
            Stage(block_class, source, width, count, stride=2 if stage else 1, frozen=freeze_norm)
            for stage, (source, width, count) in enumerate(
                zip(sources, widths, STAGE_BLOCKS[depth], strict=True)
            )
        )
        self.out_channels = [block_class.expansion * width for width in widths[-NUM_RETURNED:]]
        if freeze_stem:
            self.conv1.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps (B, C, H / s, W / s) of s = 8, 16, 32 of images (B, 3, H, W)."""
        features = F.max_pool2d(self.conv1(images), 3, 2, 1)
        maps = []
        for stage in self.res_layers:
            features = stage(features)
            maps.append(features)
        return tuple(maps[-NUM_RETURNED:])
