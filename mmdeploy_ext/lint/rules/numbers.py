"""Precision."""
# ruff: noqa: D101, D102 - the examples are shown in the documentation, as short as users write them

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdeploy_ext.lint.rule import RIGHT, UNRUNNABLE, Example, Rule
from mmdeploy_ext.lint.rules.data import one, other


class AngleInDouble(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.atan(x.double() * 1.1).float()


class AngleInFloat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.atan(x * 1.1)


class AgeOfFloats(nn.Module):
    def forward(self, time: Tensor) -> Tensor:
        seconds = time.float()
        return seconds[1:] - seconds[:-1]


class AgeOfDoubles(nn.Module):
    def forward(self, time: Tensor) -> Tensor:
        return (time[1:] - time[:-1]).float()


def _times(start: float) -> tuple[Tensor]:
    return (start + torch.tensor([0.0, 0.5, 1.1], dtype=torch.float64),)


RULES = (
    Rule(
        id='float64',
        title='float64 inside the model',
        why='Engines for GPUs have no float64, and ONNX Runtime (CPU) lacks some operators for it: Atan of '
        'float64 exports, and does not load.',
        fix='float32 in the graph; what needs float64 (time, global positions) is computed outside.',
        failing=Example(AngleInDouble, one, other),
        passing=Example(AngleInFloat, one, other),
        outcomes=dict(torchscript=UNRUNNABLE, dynamo=UNRUNNABLE),
    ),
    Rule(
        id='absolute-time',
        title='Large numbers (time stamps, global positions) that become float32',
        why='The file is as wrong as PyTorch: float32 has steps of 128 s at time stamps of today (1.5e9 s),'
        ' and of 6 cm at UTM coordinates. Differences of such numbers are noise.',
        fix='Subtract in float64 outside the graph; feed ages and relative positions.',
        failing=Example(AgeOfFloats, lambda: _times(1533201470.1), lambda: _times(1533301470.1)),
        passing=Example(AgeOfDoubles, lambda: _times(1533201470.1), lambda: _times(1533301470.1)),
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
        otherwise='warning',
    ),
)
