"""Precision."""
# ruff: noqa: D101 - the examples are shown in the documentation, as short as users write them

from __future__ import annotations

import torch
from torch import Tensor, nn

from docs._pages.lint.data import one, other
from docs._pages.lint.example import Example, Examples


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


EXAMPLES = {
    'float64': Examples(
        failing=Example(AngleInDouble, one, other),
        passing=Example(AngleInFloat, one, other),
    ),
    'absolute-time': Examples(
        failing=Example(AgeOfFloats, lambda: _times(1533201470.1), lambda: _times(1533301470.1)),
        passing=Example(AgeOfDoubles, lambda: _times(1533201470.1), lambda: _times(1533301470.1)),
    ),
}
