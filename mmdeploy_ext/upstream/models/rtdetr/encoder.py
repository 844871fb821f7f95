"""Hybrid encoder: attention within the coarsest map (AIFI), convolutions across maps (CCFM).

Source: lyuwenyu/RT-DETR 068dfde, rtdetr_pytorch/src/zoo/rtdetr/hybrid_encoder.py, with its parameter names.
Glossary: B batch, D embedding, h, w map size, T tokens of the coarsest map, row by row.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.runner import BaseModule
from mmdet.models.builder import NECKS
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.rtdetr.layers import ACTIVATIONS, ConvNorm, RepVggBlock, SelfAttention

REP_BLOCKS = 3
TEMPERATURE = 10000.0
"""Upper bound of the position embedding's periods, cells over 2 pi."""
LAYOUTS = ('original', 'row_major')


class PositionEmbedding(nn.Module):
    """2D sine and cosine embedding."""

    def __init__(self, dim: int, layout: str = 'original') -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ConfigError(f'position_layout={layout!r}: expected one of {", ".join(LAYOUTS)}')
        if dim % 4:
            raise ConfigError(f'hidden_dim={dim}: a 2D embedding needs a multiple of 4')
        self.quarter, self.layout = dim // 4, layout

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (1, h * w, D) `[sin a, cos a, sin b, cos b]`."""
        height, width = features.shape[2], features.shape[3]
        slow, fast = (width, height) if self.layout == 'original' else (height, width)
        omega = TEMPERATURE ** -(np.arange(self.quarter) / max(self.quarter, 1))
        omega = torch.tensor(omega.tolist(), device=features.device)
        lines = [
            torch.arange(size, device=features.device).to(torch.float32)[:, None] * omega
            for size in (slow, fast)
        ]
        shape = (slow, fast, 2 * self.quarter)
        parts = [
            torch.cat([line.sin(), line.cos()], -1).unsqueeze(axis).expand(shape)
            for axis, line in ((1, lines[0]), (0, lines[1]))
        ]
        return torch.cat(parts, -1).flatten(0, 1)[None].to(features.dtype)


class EncoderLayer(nn.Module):
    """One layer of attention and feed-forward, each normalised after its sum."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float, act: str) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, heads)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.act = ACTIVATIONS[act]()

    def forward(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, T, D) of tokens (B, T, D) and position (1, T, D)."""
        tokens = self.norm1(tokens + self.dropout(self.self_attn(tokens, position)))
        inner = self.linear2(self.dropout(self.act(self.linear1(tokens))))
        return self.norm2(tokens + self.dropout(inner))


class Encoder(nn.Module):
    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            tokens = layer(tokens, position)
        return tokens


class CSPRepLayer(nn.Module):
    """Two 1x1 branches, one with RepVGG blocks, summed."""

    def __init__(self, in_channels: int, out_channels: int, expansion: float, act: str) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.conv1 = ConvNorm(in_channels, hidden, 1, act=act)
        self.conv2 = ConvNorm(in_channels, hidden, 1, act=act)
        self.bottlenecks = nn.Sequential(*(RepVggBlock(hidden, act) for _ in range(REP_BLOCKS)))
        same = hidden == out_channels
        self.conv3 = nn.Identity() if same else ConvNorm(hidden, out_channels, 1, act=act)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, h, w) of maps (B, in_channels, h, w)."""
        return self.conv3(self.bottlenecks(self.conv1(features)) + self.conv2(features))


@registered_if_named(NECKS)
class RTDETRHybridEncoder(BaseModule):
    """Three backbone maps to three maps of one width."""

    def __init__(
        self,
        in_channels: Sequence[int],
        hidden_dim: int = 256,
        num_heads: int = 8,
        feedforward: int = 1024,
        num_layers: int = 1,
        expansion: float = 1.0,
        dropout: float = 0.0,
        encoder_act: str = 'gelu',
        act: str = 'silu',
        position_layout: str = 'original',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        dim, steps = hidden_dim, range(len(in_channels) - 1)
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, dim, 1, bias=False), nn.BatchNorm2d(dim))
            for channels in in_channels
        )
        layers = [EncoderLayer(dim, num_heads, feedforward, dropout, encoder_act) for _ in range(num_layers)]
        self.encoder = nn.ModuleList([Encoder(layers)])
        self.position = PositionEmbedding(dim, position_layout)
        self.lateral_convs = nn.ModuleList(ConvNorm(dim, dim, 1, act=act) for _ in steps)
        self.fpn_blocks = nn.ModuleList(CSPRepLayer(2 * dim, dim, expansion, act) for _ in steps)
        self.downsample_convs = nn.ModuleList(ConvNorm(dim, dim, 3, 2, act) for _ in steps)
        self.pan_blocks = nn.ModuleList(CSPRepLayer(2 * dim, dim, expansion, act) for _ in steps)

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return three maps (B, D, h, w), strides 8, 16, 32."""
        maps = [project(level) for project, level in zip(self.input_proj, features, strict=True)]
        maps[-1] = self.attend(maps[-1])
        return self.bottom_up(*self.top_down(maps))

    def attend(self, features: torch.Tensor) -> torch.Tensor:
        """Return the coarsest map (B, D, h, w) after attention of its tokens."""
        tokens = self.encoder[0](features.flatten(2).transpose(1, 2), self.position(features))
        return tokens.transpose(1, 2).reshape(features.shape)

    def top_down(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the finest map and the lateral outputs, coarsest first; all are (B, D, h, w)."""
        current, laterals = maps[-1], []
        for lateral, block, finer in zip(
            self.lateral_convs, self.fpn_blocks, reversed(maps[:-1]), strict=True
        ):
            current = lateral(current)
            laterals.append(current)
            raised = F.interpolate(current, scale_factor=2.0, mode='nearest')
            current = block(torch.cat([raised, finer], 1))
        return current, laterals

    def bottom_up(self, finest: torch.Tensor, laterals: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return all maps (B, D, h, w), finest first, of the results of `top_down`."""
        maps = [finest]
        for down, block, lateral in zip(
            self.downsample_convs, self.pan_blocks, reversed(laterals), strict=True
        ):
            maps.append(block(torch.cat([down(maps[-1]), lateral], 1)))
        return tuple(maps)
