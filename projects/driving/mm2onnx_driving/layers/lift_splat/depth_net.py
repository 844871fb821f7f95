"""Encoders of pictures and of the bird's-eye view, and the depth network of BEVDepth, which sees the camera.

Source: HuangJunJie2017/BEVDet f71858d, necks/fpn.py, backbones/resnet.py, necks/lss_fpn.py,
necks/view_transformer.py:470-630.

Glossary: S pictures (cameras of all samples), C channels, h, w feature map, Y, X rows and columns of the
bird's-eye view.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.models import BACKBONES, NECKS
from mmdet.models.backbones.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# ---- feature pyramid of pictures; residual network and pyramid of the bird's-eye view


@registered_if_named(NECKS)
class CustomFPN(nn.Module):
    """A feature pyramid without norm and ReLU; its output is (S, out_channels, h, w) of the first level."""

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int = 1,
        start_level: int = 0,
        out_ids: Sequence[int] = (0,),
        **unused: Any,
    ) -> None:
        super().__init__()
        if num_outs != 1 or start_level or list(out_ids) != [0]:
            raise ConfigError(
                f'CustomFPN: num_outs={num_outs}, start_level={start_level}, out_ids={list(out_ids)}; '
                f'expected 1, 0 and [0], as in the published configs'
            )
        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, act_cfg=None) for channels in in_channels
        )
        self.fpn_convs = nn.ModuleList([ConvModule(out_channels, out_channels, 3, padding=1, act_cfg=None)])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = [conv(level) for conv, level in zip(self.lateral_convs, maps, strict=True)]
        while len(levels) > 1:
            coarse = levels.pop()
            levels[-1] = levels[-1] + functional.interpolate(coarse, levels[-1].shape[2:], mode='nearest')
        return self.fpn_convs[0](levels[0])


def stage(inside: int, outside: int, blocks: int, stride: int) -> nn.Sequential:
    """Return basic blocks; the first has a convolution with a bias and without norm beside it."""
    shortcut = nn.Conv2d(inside, outside, 3, stride, 1)
    first = BasicBlock(inside, outside, stride, downsample=shortcut)
    return nn.Sequential(first, *(BasicBlock(outside, outside) for _ in range(blocks - 1)))


@registered_if_named(BACKBONES)
class CustomResNet(nn.Module):
    """Residual stages; returns the maps of the stages in `backbone_output_ids` (all by default)."""

    def __init__(
        self,
        numC_input: int,
        num_layer: Sequence[int] = (2, 2, 2),
        num_channels: Sequence[int] | None = None,
        stride: Sequence[int] = (2, 2, 2),
        backbone_output_ids: Sequence[int] | None = None,
        block_type: str = 'Basic',
        **unused: Any,
    ) -> None:
        super().__init__()
        if block_type != 'Basic':
            raise ConfigError(f"CustomResNet: block_type={block_type!r}; expected 'Basic'")
        channels = num_channels or [numC_input * 2 ** (index + 1) for index in range(len(num_layer))]
        inputs = [numC_input, *channels[:-1]]
        sizes = zip(inputs, channels, num_layer, stride, strict=True)
        self.layers = nn.Sequential(*(stage(*size) for size in sizes))
        self.backbone_output_ids = (
            range(len(num_layer)) if backbone_output_ids is None else backbone_output_ids
        )

    def forward(self, view: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            view = layer(view)
            maps.append(view)
        return [maps[index] for index in self.backbone_output_ids]


def conv_norm_relu(inside: int, outside: int, kernel: int = 3, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inside, outside, kernel, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]


@registered_if_named(NECKS)
class FPN_LSS(nn.Module):
    """Joins two maps of the view's backbone: (1, out_channels, Y, X) of the grid's size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale_factor: int = 4,
        input_feature_index: Sequence[int] = (0, 2),
        extra_upsample: int | None = 2,
        **unused: Any,
    ) -> None:
        super().__init__()
        self.input_feature_index = tuple(input_feature_index)
        self.up = nn.Upsample(scale_factor=scale_factor, mode='bilinear', align_corners=True)
        width = out_channels * (2 if extra_upsample else 1)
        self.conv = nn.Sequential(*conv_norm_relu(in_channels, width), *conv_norm_relu(width, width))
        self.up2: nn.Module = nn.Identity()
        if extra_upsample:
            self.up2 = nn.Sequential(
                nn.Upsample(scale_factor=extra_upsample, mode='bilinear', align_corners=True),
                *conv_norm_relu(width, out_channels),
                nn.Conv2d(out_channels, out_channels, 1),
            )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        fine, coarse = (maps[index] for index in self.input_feature_index)
        return self.up2(self.conv(torch.cat([fine, self.up(coarse)], 1)))


# ---- depth network

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
