"""Operators."""
# ruff: noqa: D101, D102 - the examples are shown as short as users write them

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmdeploy_ext.lint.rule import REFUSED, RIGHT, WRONG_AT_ONCE, Example, Rule
from mmdeploy_ext.lint.rules.data import falling, one, other, rows


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


RULES = (
    Rule(
        id='matrix-inverse',
        title='`torch.inverse`, `torch.linalg.inv`',
        why='ONNX has no such operator; both exporters refuse.',
        fix='Invert outside the graph and feed the inverse; 4x4 matrices of a camera rig are inverted once.',
        failing=Example(InvertsMatrix, lambda: (rows(), _matrix(1)), lambda: (falling(), _matrix(2))),
        passing=Example(AppliesInverse, lambda: (rows(), _matrix(1)), lambda: (falling(), _matrix(2))),
        outcomes=dict(torchscript=REFUSED, dynamo=REFUSED),
    ),
    Rule(
        id='random',
        title='Random numbers drawn in `forward`; dropout that is on',
        why='The file draws numbers of its own: it cannot be compared with anything.',
        fix='Noise is an input; `module.eval()` switches dropout off.',
        failing=Example(DrawsNoise, one, other),
        passing=Example(TakesNoise, lambda: (rows(), falling()), lambda: (falling(), rows())),
        outcomes=dict(torchscript=WRONG_AT_ONCE, dynamo=WRONG_AT_ONCE),
    ),
    Rule(
        id='unsupported-operator',
        title='An operator that the exporter does not know at this opset',
        why='The export ends with its name. The report gives the line.',
        fix='A higher opset where one has it; a form of standard operators; a custom operator.',
        failing=Example(Bessel, one, other),
        passing=Example(BesselBySeries, one, one),
        more_failing=(Example(UpperTriangle, one, other, opset=13),),
        outcomes=dict(torchscript=REFUSED, dynamo=REFUSED),
    ),
    Rule(
        id='function-without-symbolic',
        title='A `torch.autograd.Function` without `symbolic`',
        why='The TorchScript exporter has nothing to write for it. The dynamo exporter follows its Python '
        'code.',
        fix='A `symbolic` beside `forward`; or functions of torch.',
        failing=Example(CallsFunction, one, other),
        passing=Example(CallsTorch, one, other),
        outcomes=dict(torchscript=REFUSED, dynamo=RIGHT),
    ),
    Rule(
        id='function-with-symbolic',
        title='A `torch.autograd.Function` with `symbolic`',
        why='The TorchScript exporter writes what `symbolic` says. The dynamo exporter does not look at it:'
        ' it follows the Python code of `forward`, so a node that an engine has a kernel for is not in '
        'its file.',
        fix='Nothing for TorchScript. For the node in a file of the dynamo exporter, '
        '`torch.onnx.ops.symbolic`.',
        failing=Example(CallsFunctionWithNode, one, other),
        passing=Example(CallsTorch, one, other),
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
    ),
)
