"""CSP layers with large depth-wise kernels, of RTMDet's backbone and neck.

Source of names, shapes and constants: mmdet 3.3.0 `models/layers/csp_layer.py`, `se_layer.py`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from torch import nn

from mmdeploy_ext.compat.older_mmdet import mmdet_module

CSPLayer = mmdet_module('mmdet.models.utils').CSPLayer

NORM = dict(type='BN', momentum=0.03, eps=0.001)
SILU = dict(type='SiLU')
KERNEL = 5
"""Of the depth-wise convolution of a block."""


def convolution(norm_cfg: Mapping[str, Any], act_cfg: Mapping[str, Any], use_depthwise: bool = False) -> Any:
    """Return what makes a convolution with its normalisation and activation."""
    kind = DepthwiseSeparableConvModule if use_depthwise else ConvModule
    return functools.partial(kind, norm_cfg=dict(norm_cfg), act_cfg=dict(act_cfg))


class CSPNeXtBlock(nn.Module):
    """A 3x3 convolution and a depth-wise separable one of 5x5, with their input added or not."""

    def __init__(self, channels: int, add_identity: bool, use_depthwise: bool, **layers: Any) -> None:
        super().__init__()
        self.conv1 = convolution(**layers, use_depthwise=use_depthwise)(channels, channels, 3, padding=1)
        separable = convolution(**layers, use_depthwise=True)
        self.conv2 = separable(channels, channels, KERNEL, padding=KERNEL // 2)
        self.add_identity = add_identity

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps of the input's shape (B, C, h, w)."""
        out = self.conv2(self.conv1(x))
        return out + x if self.add_identity else out


class ChannelAttention(nn.Module):
    """Each channel, times a weight that is made of the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps of the input's shape (B, C, h, w)."""
        means = x.mean(3, keepdim=True).mean(2, keepdim=True)  # two steps: one long sum is off, see norms.py
        return x * nn.functional.hardsigmoid(self.fc(means))


class CSPNeXtLayer(CSPLayer):
    """mmdet's cross stage partial layer with `CSPNeXtBlock`s, and channel attention before its last layer."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        expand_ratio: float = 0.5,
        add_identity: bool = True,
        channel_attention: bool = False,
        use_depthwise: bool = False,
        **layers: Any,
    ) -> None:
        """Build it; `layers` are `norm_cfg` and `act_cfg`."""
        super().__init__(in_channels, out_channels, expand_ratio, num_blocks=0, **layers)
        inside = self.main_conv.out_channels
        blocks = [CSPNeXtBlock(inside, add_identity, use_depthwise, **layers) for _ in range(num_blocks)]
        self.blocks = nn.Sequential(*blocks)
        self.attention = ChannelAttention(2 * inside) if channel_attention else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, h, w)."""
        both = torch.cat([self.blocks(self.main_conv(x)), self.short_conv(x)], 1)
        return self.final_conv(self.attention(both))
