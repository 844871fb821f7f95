"""Inputs, outputs and state."""
# ruff: noqa: D101 - the examples are shown in the documentation, as short as users write them

from __future__ import annotations

import torch
from torch import Tensor, nn

from docs._pages.lint.data import falling, one, other, rows
from docs._pages.lint.example import Example, Examples


class UsesOneOfTwo(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * 2


class UsesBoth(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * 2 + y


class ScaledByNumberOfInput(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * float(y.sum())


class ScaledByInput(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y.sum()


class ReadsAttribute(nn.Module):
    features: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.features * 2


class ReadsArgument(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def set_features(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Do what the caller of `ReadsAttribute` does."""
    module.features = args[0]


class KeepsMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('memory', torch.zeros(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.memory = self.memory * 0.5 + x
        return self.memory * 1.0


class PassesMemory(nn.Module):
    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return memory * 0.5 + x


class GivesDict(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {'scores': x * 2, 'boxes': x + 1}


class GivesTuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x + 1


class GivesLists(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return x * 2, [x + 1, x - 1]


class GivesFlat(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x * 2, x + 1, x - 1


class GivesNumber(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x * 2, 7


class GivesText(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x * 2, 'boxes'


class NormalisesByBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def _two() -> tuple[Tensor, Tensor]:
    return rows(), falling()


def _two_others() -> tuple[Tensor, Tensor]:
    return falling(), rows() + 1


EXAMPLES = {
    'unused-input': Examples(
        failing=Example(UsesOneOfTwo, _two, _two_others),
        passing=Example(UsesBoth, _two, _two_others),
    ),
    'frozen-input': Examples(
        failing=Example(ScaledByNumberOfInput, _two, _two_others),
        passing=Example(ScaledByInput, _two, _two_others),
    ),
    'input-by-attribute': Examples(
        failing=Example(ReadsAttribute, one, other, prepare=set_features),
        passing=Example(ReadsArgument, one, other),
    ),
    'state-written': Examples(
        failing=Example(KeepsMemory, one, other),
        passing=Example(PassesMemory, _two, _two_others),
    ),
    'dict-output': Examples(
        failing=Example(GivesDict, one, other),
        passing=Example(GivesTuple, one, other),
    ),
    'nested-output': Examples(
        failing=Example(GivesLists, one, other),
        passing=Example(GivesFlat, one, other),
    ),
    'number-output': Examples(
        failing=Example(GivesNumber, one, other),
        passing=Example(ReadsArgument, one, other),
    ),
    'text-output': Examples(
        failing=Example(GivesText, one, other),
        passing=Example(ReadsArgument, one, other),
    ),
    'training-mode': Examples(
        failing=Example(NormalisesByBatch, one, other, training=True),
        passing=Example(NormalisesByBatch, one, other),
    ),
}
