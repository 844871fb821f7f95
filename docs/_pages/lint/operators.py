"""Operators."""
# ruff: noqa: D101 - the examples are shown as short as users write them

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from docs._pages.lint.data import falling, one, other, rows
from docs._pages.lint.example import Example, Examples


class InvertsMatrix(nn.Module):
    def forward(self, points: Tensor, matrix: Tensor) -> Tensor:
        return points @ torch.inverse(matrix)


class AppliesInverse(nn.Module):
    def forward(self, points: Tensor, inverse: Tensor) -> Tensor:
        return points @ inverse


class DrawsNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class TakesNoise(nn.Module):
    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + noise


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class BesselBySeries(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        square = x * x / 4
        return 1 - square + square**2 / 4 - square**3 / 36 + square**4 / 576


class UpperTriangle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu(1)


class Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)


class CallsFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Relu.apply(x) * 2


class ReluWithNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def symbolic(g: Any, x: Any) -> Any:
        return g.op('Relu', x)


class CallsFunctionWithNode(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ReluWithNode.apply(x) * 2


class CallsTorch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() * 2


def _matrix(scale: float) -> Tensor:
    return torch.eye(3) * scale + 0.1


EXAMPLES = {
    'matrix-inverse': Examples(
        failing=Example(InvertsMatrix, lambda: (rows(), _matrix(1)), lambda: (falling(), _matrix(2))),
        passing=Example(AppliesInverse, lambda: (rows(), _matrix(1)), lambda: (falling(), _matrix(2))),
    ),
    'random': Examples(
        failing=Example(DrawsNoise, one, other),
        passing=Example(TakesNoise, lambda: (rows(), falling()), lambda: (falling(), rows())),
    ),
    'unsupported-operator': Examples(
        failing=Example(Bessel, one, other),
        passing=Example(BesselBySeries, one, one),
        more_failing=(Example(UpperTriangle, one, other, opset=13),),
    ),
    'function-without-symbolic': Examples(
        failing=Example(CallsFunction, one, other),
        passing=Example(CallsTorch, one, other),
    ),
    'function-with-symbolic': Examples(
        failing=Example(CallsFunctionWithNode, one, other),
        passing=Example(CallsTorch, one, other),
    ),
}
