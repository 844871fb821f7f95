"""Numbers taken out of tensors."""
# ruff: noqa: D101 - the examples are shown in the documentation, as short as users write them

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from docs._pages.lint.data import falling, one, other, rows
from docs._pages.lint.example import Example, Examples


class ScaledByItem(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.max().item()


class ScaledByTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.max()


class ClippedByNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(np.clip(x.numpy(), 0, 1))


class ClippedByTorch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.clamp(0, 1)


class IfPositive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return -x


class WherePositive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.sum() > 0, x * 2, -x)


class RepeatedByLoop(nn.Module):
    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        for _ in range(int(n)):
            x = x * 1.5
        return x


class RepeatedByPower(nn.Module):
    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return x * torch.pow(torch.tensor(1.5), n)


class DoubledUntilLarge(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while x.max() < 8:
            x = x * 2 + 1
        return x


class StackedMaxima(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2] / torch.tensor([x[:, 0].max(), x[:, 1].max()])


EXAMPLES = {
    'value-to-python': Examples(
        failing=Example(ScaledByItem, one, other),
        passing=Example(ScaledByTensor, one, other),
        more_failing=(Example(StackedMaxima, one, other),),
    ),
    'value-to-numpy': Examples(
        failing=Example(ClippedByNumpy, one, other),
        passing=Example(ClippedByTorch, one, other),
    ),
    'value-in-branch': Examples(
        failing=Example(IfPositive, one, other),
        passing=Example(WherePositive, one, other),
    ),
    'value-in-loop': Examples(
        failing=Example(
            RepeatedByLoop, lambda: (rows(), torch.tensor(2)), lambda: (falling(), torch.tensor(3))
        ),
        passing=Example(
            RepeatedByPower, lambda: (rows(), torch.tensor(2)), lambda: (falling(), torch.tensor(3))
        ),
        more_failing=(Example(DoubledUntilLarge, one, other),),
    ),
}
