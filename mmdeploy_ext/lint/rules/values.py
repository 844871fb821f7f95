"""Numbers taken out of tensors."""
# ruff: noqa: D101, D102 - the examples are shown in the documentation, as short as users write them

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mmdeploy_ext.lint.rule import REFUSED, RIGHT, WRONG, Example, Rule
from mmdeploy_ext.lint.rules.data import falling, one, other, rows


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


RULES = (
    Rule(
        id='value-to-python',
        title='A Python number taken from a tensor: `.item()`, `int(t)`, `float(t)`, `.tolist()`, '
        '`torch.tensor([t])`',
        why='The TorchScript exporter writes the number that it met as a constant. The dynamo exporter '
        'follows `.item()`.',
        fix='Keep it a tensor: a tensor of one element takes part in arithmetic, comparisons and indexing.',
        failing=Example(ScaledByItem, one, other),
        passing=Example(ScaledByTensor, one, other),
        more_failing=(Example(StackedMaxima, one, other),),
        outcomes=dict(torchscript=WRONG, dynamo=RIGHT),
    ),
    Rule(
        id='value-to-numpy',
        title='Values that go through numpy: `.numpy()`, `np.f(t)`',
        why='What numpy computes is a constant in a trace. torch.export replaces the numpy functions that '
        'it knows by its own, and refuses the others.',
        fix='Use the function of torch with the same name.',
        failing=Example(ClippedByNumpy, one, other),
        passing=Example(ClippedByTorch, one, other),
        outcomes=dict(torchscript=WRONG, dynamo=RIGHT),
    ),
    Rule(
        id='value-in-branch',
        title='An `if` that depends on values',
        why='The TorchScript exporter writes the branch that the example took. torch.export refuses.',
        fix='`torch.where` of both branches; a mask; or two graphs and the `if` outside.',
        failing=Example(IfPositive, one, other),
        passing=Example(WherePositive, one, other),
        outcomes=dict(torchscript=WRONG, dynamo=REFUSED),
    ),
    Rule(
        id='value-in-loop',
        title='A loop whose length depends on values: `range(int(t))`, `while t`',
        why='The TorchScript exporter writes as many steps as the example took. torch.export refuses.',
        fix='Arithmetic over all elements (cumulative sums, masks, powers), or a fixed number of steps with'
        ' a mask.',
        failing=Example(
            RepeatedByLoop, lambda: (rows(), torch.tensor(2)), lambda: (falling(), torch.tensor(3))
        ),
        passing=Example(
            RepeatedByPower, lambda: (rows(), torch.tensor(2)), lambda: (falling(), torch.tensor(3))
        ),
        more_failing=(Example(DoubledUntilLarge, one, other),),
        outcomes=dict(torchscript=WRONG, dynamo=REFUSED),
    ),
)
