"""Inputs, outputs and state."""
# ruff: noqa: D101, D102 - the examples are shown in the documentation, as short as users write them

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdeploy_ext.lint.rule import REFUSED, RIGHT, WRONG, WRONG_AT_ONCE, Example, Rule
from mmdeploy_ext.lint.rules.data import falling, one, other, rows


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


RULES = (
    Rule(
        id='unused-input',
        title='An input that no output depends on',
        why='The TorchScript exporter drops it from the file: feeding it is then an error.',
        fix='Take it out of the signature. (This project puts dropped inputs back, as its spec says.)',
        failing=Example(UsesOneOfTwo, _two, _two_others),
        passing=Example(UsesBoth, _two, _two_others),
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
        otherwise='warning',
    ),
    Rule(
        id='frozen-input',
        title='An input that the outputs depend on, but not through tensors',
        why='The outputs change with it in PyTorch; in the file of the TorchScript exporter they do not: '
        'its value was fixed when it was traced.',
        fix='Follow the other reports of the same input: somewhere it becomes a Python number or a numpy '
        'array.',
        failing=Example(ScaledByNumberOfInput, _two, _two_others),
        passing=Example(ScaledByInput, _two, _two_others),
        outcomes=dict(torchscript=WRONG, dynamo=RIGHT),
    ),
    Rule(
        id='input-by-attribute',
        title='An input that is read from an attribute of the module instead of the argument',
        why='TorchScript knows tensors by identity, so it works there. torch.export takes the attribute for'
        ' a constant: the input is in the file, and its values are not used.',
        fix='Use the argument.',
        failing=Example(ReadsAttribute, one, other, prepare=set_features),
        passing=Example(ReadsArgument, one, other),
        outcomes=dict(torchscript=RIGHT, dynamo=WRONG),
        otherwise='warning',
    ),
    Rule(
        id='state-written',
        title='State of the module that is written in `forward`',
        why='A graph has no state. The file starts from what the module held when it was exported, every '
        'time.',
        fix='State is an argument and a result; the caller feeds it back.',
        failing=Example(KeepsMemory, one, other),
        passing=Example(PassesMemory, _two, _two_others),
        outcomes=dict(torchscript=WRONG_AT_ONCE, dynamo=WRONG),
    ),
    Rule(
        id='dict-output',
        title='Outputs in a dict',
        why='They become outputs by position; the keys are lost.',
        fix='A tuple in an order that you choose, and names for the outputs.',
        failing=Example(GivesDict, one, other),
        passing=Example(GivesTuple, one, other),
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
    ),
    Rule(
        id='nested-output',
        title='Outputs in lists or tuples inside a tuple',
        why='They are flattened in order; how they were grouped is lost.',
        fix='A flat tuple.',
        failing=Example(GivesLists, one, other),
        passing=Example(GivesFlat, one, other),
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
    ),
    Rule(
        id='number-output',
        title='A Python number or a numpy array among the outputs',
        why='Both exporters refuse it.',
        fix='Leave it out: it is a constant.',
        failing=Example(GivesNumber, one, other),
        passing=Example(ReadsArgument, one, other),
        outcomes=dict(torchscript=REFUSED, dynamo=REFUSED),
    ),
    Rule(
        id='text-output',
        title='A string among the outputs',
        why='The TorchScript exporter leaves it out; the dynamo exporter refuses.',
        fix='Leave it out; names belong in the metadata of the file.',
        failing=Example(GivesText, one, other),
        passing=Example(ReadsArgument, one, other),
        outcomes=dict(torchscript=RIGHT, dynamo=REFUSED),
    ),
    Rule(
        id='training-mode',
        title='A module in training mode',
        why='The TorchScript exporter switches to evaluation mode, the dynamo exporter does not: batch '
        'normalisation uses the statistics of the batch.',
        fix='`module.eval()` before the export.',
        failing=Example(NormalisesByBatch, one, other, training=True),
        passing=Example(NormalisesByBatch, one, other),
        outcomes=dict(torchscript=WRONG_AT_ONCE, dynamo=WRONG_AT_ONCE),
    ),
)
