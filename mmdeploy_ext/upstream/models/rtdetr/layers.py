"""Layers that the parts of RT-DETR share; parameter names are the original's.

Source: lyuwenyu/RT-DETR 068dfde, rtdetr_pytorch/src/nn/backbone/common.py and src/zoo/rtdetr.

Glossary: B batch, C channels, h, w map size, T tokens, D embedding.
"""

import itertools
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmdeploy_ext.upstream.operators.attention import multi_head

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
