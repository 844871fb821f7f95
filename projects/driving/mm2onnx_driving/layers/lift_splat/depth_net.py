"""Depth and features that also depend on the camera: the depth network of BEVDepth.

Source: HuangJunJie2017/BEVDet f71858d, necks/view_transformer.py:470-630.

Glossary: S cameras of all samples, C channels, h, w feature map.
"""

from typing import Any

import torch
from mmdet.models.backbones.resnet import BasicBlock
from torch import Tensor, nn

from mm2onnx_driving.layers.lift_splat.encoders import conv_norm_relu
from mmdeploy_ext.base.errors import ConfigError

VECTOR = 27
"""Numbers of the vector of a camera."""
DILATIONS = 6, 12, 18


class Mlp(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(inside, outside), nn.ReLU(), nn.Linear(outside, outside)

    def forward(self, vector: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(vector)))


class SELayer(nn.Module):
    """Weighs the channels of a map (S, C, h, w) by gates of a vector (S, C, 1, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_reduce, self.act1 = nn.Conv2d(channels, channels, 1), nn.ReLU()
        self.conv_expand = nn.Conv2d(channels, channels, 1)

    def forward(self, values: Tensor, vector: Tensor) -> Tensor:
        return values * self.conv_expand(self.act1(self.conv_reduce(vector))).sigmoid()


class Branch(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.atrous_conv, self.bn, self.relu = conv_norm_relu(inside, outside, kernel, dilation)

    def forward(self, values: Tensor) -> Tensor:
        return self.relu(self.bn(self.atrous_conv(values)))


class ASPP(nn.Module):
    """Convolutions of four dilations and the global mean, joined."""

    def __init__(self, channels: int, mid_channels: int) -> None:
        super().__init__()
        self.aspp1 = Branch(channels, mid_channels, 1, 1)
        self.aspp2, self.aspp3, self.aspp4 = (Branch(channels, mid_channels, 3, step) for step in DILATIONS)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), *conv_norm_relu(channels, mid_channels, 1)
        )
        self.conv1, self.bn1, self.relu = conv_norm_relu(5 * mid_channels, channels, 1)

    def forward(self, values: Tensor) -> Tensor:
        branches = [branch(values) for branch in (self.aspp1, self.aspp2, self.aspp3, self.aspp4)]
        mean = self.global_avg_pool(values).expand_as(branches[0])
        return self.relu(self.bn1(self.conv1(torch.cat([*branches, mean], 1))))


class DepthNet(nn.Module):
    """Depth logits, then features (S, depth_channels + context_channels, h, w) of maps and camera vectors."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        context_channels: int,
        depth_channels: int,
        use_dcn: bool = True,
        use_aspp: bool = True,
        aspp_mid_channels: int = -1,
        stereo: bool = False,
        **unused: Any,
    ) -> None:
        super().__init__()
        if use_dcn or stereo or not use_aspp:
            raise ConfigError(
                f'depthnet_cfg: use_dcn={use_dcn}, stereo={stereo}, use_aspp={use_aspp}; expected False, '
                f'False and True, as in bevdet-r50-4dlongterm-depth-cbgs'
            )
        reduce = nn.Conv2d(in_channels, mid_channels, 3, padding=1)
        self.reduce_conv = nn.Sequential(reduce, nn.BatchNorm2d(mid_channels), nn.ReLU(inplace=True))
        self.context_conv = nn.Conv2d(mid_channels, context_channels, 1)
        self.bn = nn.BatchNorm1d(VECTOR)
        self.depth_mlp, self.context_mlp = Mlp(VECTOR, mid_channels), Mlp(VECTOR, mid_channels)
        self.depth_se, self.context_se = SELayer(mid_channels), SELayer(mid_channels)
        aspp = ASPP(mid_channels, mid_channels if aspp_mid_channels < 0 else aspp_mid_channels)
        blocks = [BasicBlock(mid_channels, mid_channels) for _ in range(3)]
        self.depth_conv = nn.Sequential(*blocks, aspp, nn.Conv2d(mid_channels, depth_channels, 1))

    def forward(self, maps: Tensor, vectors: Tensor) -> Tensor:
        """`maps` are (S, in_channels, h, w), `vectors` (S, 27) or (B, N, 27)."""
        vectors = self.bn(vectors.reshape(-1, VECTOR))
        maps = self.reduce_conv(maps)
        context = self.context_conv(self.context_se(maps, self.context_mlp(vectors)[..., None, None]))
        depth = self.depth_conv(self.depth_se(maps, self.depth_mlp(vectors)[..., None, None]))
        return torch.cat([depth, context], 1)
