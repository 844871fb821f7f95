"""ConvNeXt and ConvNeXt V2 with the parameter names of mmpretrain, which mmdet 3's configs name.

Source: mmpretrain 1.2.0 `models/backbones/convnext.py`, `models/utils/norm.py`;
https://arxiv.org/abs/2201.03545, https://arxiv.org/abs/2301.00808.
Glossary: B batch, C channels, h, w cells of a map.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.runner import BaseModule
from mmdet.models.builder import BACKBONES
from torch import nn

from mmdeploy_ext.upstream.models.catalogue import registered_if_named

ARCHITECTURES = dict(
    atto=((2, 2, 6, 2), 40),
    femto=((2, 2, 6, 2), 48),
    pico=((2, 2, 6, 2), 64),
    nano=((2, 2, 8, 2), 80),
    tiny=((3, 3, 9, 3), 96),
    small=((3, 3, 27, 3), 96),
    base=((3, 3, 27, 3), 128),
    large=((3, 3, 27, 3), 192),
    xlarge=((3, 3, 27, 3), 256),
    huge=((3, 3, 27, 3), 352),
)
"""Name -> blocks of each stage, channels of the first; each further stage has twice as many."""
RESPONSE_EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """A LayerNorm over the channels of maps (B, C, h, w)."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """V2's normalisation of each channel by its norm over the map, relative to that of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows (B, h, w, C)."""
        response = rows.square().sum((1, 2), keepdim=True).sqrt()
        response = response / (response.mean(-1, keepdim=True) + RESPONSE_EPS)
        return self.gamma * (rows * response) + self.beta + rows


class Block(nn.Module):
    """A depthwise convolution and two linear layers, added to the maps; of V2 with a `ResponseNorm`."""

    def __init__(self, channels: int, eps: float, gamma: float, grn: bool) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps)
        self.pointwise_conv1 = nn.Linear(channels, 4 * channels)
        self.grn = ResponseNorm(4 * channels) if grn else nn.Identity()
        self.pointwise_conv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), gamma)) if gamma > 0 else None

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        rows = self.norm(self.depthwise_conv(maps).permute(0, 2, 3, 1))
        rows = self.pointwise_conv2(self.grn(F.gelu(self.pointwise_conv1(rows))))
        rows = rows if self.gamma is None else rows * self.gamma
        return maps + rows.permute(0, 3, 1, 2)


@registered_if_named(BACKBONES)
class ConvNeXt(BaseModule):
    """The backbone of mmpretrain for `gap_before_final_norm=False` and linear layers, as a detector has them.

    A training alone reads `drop_path_rate`, `frozen_stages` and `with_cp`.
    """

    def __init__(
        self,
        arch: str = 'tiny',
        in_channels: int = 3,
        stem_patch_size: int = 4,
        norm_cfg: dict[str, Any] | None = None,
        use_grn: bool = False,
        layer_scale_init_value: float = 1e-6,
        out_indices: Sequence[int] = (3,),
        drop_path_rate: float = 0.0,
        frozen_stages: int = 0,
        with_cp: bool = False,
        *,
        gap_before_final_norm: bool,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if gap_before_final_norm:
            raise ValueError('gap_before_final_norm=True: expected False, a detector needs maps')
        depths, first = ARCHITECTURES[arch]
        eps = (norm_cfg or {}).get('eps', 1e-6)
        channels = [in_channels, *(first * 2**stage for stage in range(len(depths)))]
        self.downsample_layers, self.stages = nn.ModuleList(), nn.ModuleList()
        for stage, depth in enumerate(depths):
            before, after = channels[stage : stage + 2]
            side = 2 if stage else stem_patch_size
            layers = [nn.Conv2d(before, after, side, side), ChannelNorm(before if stage else after, eps)]
            self.downsample_layers.append(nn.Sequential(*(layers[::-1] if stage else layers)))
            blocks = [Block(after, eps, layer_scale_init_value, use_grn) for _ in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
        self.out_indices = tuple(index % len(depths) for index in out_indices)
        for index in self.out_indices:
            self.add_module(f'norm{index}', ChannelNorm(channels[index + 1], eps))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the normalised maps (B, C, h, w) of the stages in `out_indices`."""
        outputs = []
        for index, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            image = stage(downsample(image))
            if index in self.out_indices:
                outputs.append(getattr(self, f'norm{index}')(image))
        return tuple(outputs)
