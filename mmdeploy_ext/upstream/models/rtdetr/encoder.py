"""Hybrid encoder: attention within the coarsest map (AIFI), convolutions across maps (CCFM).

Source: lyuwenyu/RT-DETR 068dfde, rtdetr_pytorch/src/zoo/rtdetr/hybrid_encoder.py, with its parameter names.
Glossary: B batch, D embedding, h, w map size, T tokens of the coarsest map, row by row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.runner import BaseModule
from mmdet.models.builder import NECKS
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.operators.attention import multi_head

if TYPE_CHECKING:
    from typing import Self

# Layers that the parts of RT-DETR share; parameter names are the original's.
#
# Source: lyuwenyu/RT-DETR 068dfde, rtdetr_pytorch/src/nn/backbone/common.py and src/zoo/rtdetr.
#
# Glossary: B batch, C channels, h, w map size, T tokens, D embedding.


ACTIVATIONS = {'relu': nn.ReLU, 'silu': nn.SiLU, 'gelu': nn.GELU, '': nn.Identity}


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that never learns; checkpoints lack `num_batches_tracked`."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.num_batches_tracked = None
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def _load_from_state_dict(self, *args: Any) -> None:
        # BatchNorm2d would add the counter that this layer does not have
        nn.Module._load_from_state_dict(self, *args)


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation (maybe `frozen`), activation `act`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        act: str = '',
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=(kernel - 1) // 2, bias=False
        )
        self.norm = (FrozenBatchNorm2d if frozen else nn.BatchNorm2d)(out_channels)
        self.act = ACTIVATIONS[act]()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, out_channels, h / stride, w / stride), rounded up."""
        return self.act(self.norm(self.conv(features)))


class SelfAttention(nn.Module):
    """Multi-head self-attention; parameters as in `nn.MultiheadAttention`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f'hidden_dim={dim} is not a multiple of num_heads={heads}')
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, tokens: torch.Tensor, position: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return (B, T, D): queries and keys are tokens (B, T, D) + position (B or 1, T, D), values tokens.

        `mask` (T, T) bool is True where a row must not look at a column.
        """
        placed = tokens + position
        mixed = multi_head((placed, placed, tokens), self.in_proj_weight, self.in_proj_bias, self.heads, mask)
        return self.out_proj(mixed)


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them, `layers.0`, `layers.1` ..."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (..., out_dim) of tokens (..., in_dim)."""
        for layer in self.layers[:-1]:
            tokens = layer(tokens).relu()
        return self.layers[-1](tokens)


class RepVggBlock(nn.Module):
    """A 3x3 and a 1x1 convolution summed; one 3x3 convolution after re-parameterisation."""

    def __init__(self, channels: int, act: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)
        self.act = ACTIVATIONS[act]()
        self.conv: nn.Conv2d | None = None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.conv is not None:
            return self.act(self.conv(features))
        return self.act(self.conv1(features) + self.conv2(features))

    def reparameterise(self) -> None:
        """Add `conv`, the sum of both branches as one 3x3 convolution."""
        if self.conv is not None:
            return
        (weight, bias), (small, small_bias) = (_folded(branch) for branch in (self.conv1, self.conv2))
        self.conv = nn.Conv2d(weight.shape[1], len(weight), 3, padding=1).to(weight)
        self.conv.weight = nn.Parameter(weight + F.pad(small, (1, 1, 1, 1)))
        self.conv.bias = nn.Parameter(bias + small_bias)


def _folded(branch: ConvNorm) -> tuple[torch.Tensor, torch.Tensor]:
    conv, norm = branch.conv, branch.norm
    return fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


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
