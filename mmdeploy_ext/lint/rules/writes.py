"""Writes into tensors."""
# ruff: noqa: D101, D102 - the examples are shown in the documentation, as short as users write them

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdeploy_ext.lint.rule import REFUSED, RIGHT, WRONG, WRONG_AT_ONCE, Example, Rule
from mmdeploy_ext.lint.rules.data import BATCH, falling, more, one, other, rows


class AddsData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.data * 2


class AddsDetached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.detach() * 2


class AddsParameterData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.data * 2


class AddsParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias * 2


class WritesNegativeRows(nn.Module):
    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        x = x.clone()
        x[index] = 0.0
        return x


class WritesRows(nn.Module):
    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        from_start = torch.where(index < 0, index + x.shape[0], index)
        chosen = (torch.arange(x.shape[0])[:, None] == from_start).any(1)
        return torch.where(chosen[:, None], 0.0, x)


class WritesGrid(nn.Module):
    def forward(self, x: Tensor, row: Tensor, column: Tensor) -> Tensor:
        x = x.clone()
        x[row, column] = 9.0
        return x


class WritesFlat(nn.Module):
    def forward(self, x: Tensor, row: Tensor, column: Tensor) -> Tensor:
        flat = (row * x.shape[1] + column).flatten()
        return x.flatten().scatter(0, flat, torch.full_like(flat, 9, dtype=x.dtype)).reshape(x.shape)


class WritesSlice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[1:-1, :2] = x[1:-1, 1:] * 2
        return x


class ConcatenatesSlices(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        middle = torch.cat([x[1:-1, 1:] * 2, x[1:-1, 2:]], 1)
        return torch.cat([x[:1], middle, x[-1:]])


class WritesColumnOfMask(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        first = x[:, 0]
        first[first < 0.4] = 9.0
        return x


class WhereColumn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :1]
        return torch.cat([torch.where(first < 0.4, 9.0, first), x[:, 1:]], 1)


class AddsIntoView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        first, second, _ = x.unbind(1)
        first.add_(second)
        return x


class WritesFlatView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[0] = 5.0
        return x


class SigmoidOfSlice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :2].sigmoid_()
        return x


class WritesInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return x * 2


class NewTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 1) * 2


def _index(*numbers: list[int]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(item) for item in numbers)


RULES = (
    Rule(
        id='tensor-data',
        title='`tensor.data`',
        why='The TorchScript tracer does not see it: the values of the example become a constant. The '
        'dynamo exporter of torch 2.13 refuses it, or the Python process dies of a segmentation fault.',
        fix='`.detach()`; for a write into `.data`, a new tensor.',
        failing=Example(AddsData, one, other),
        passing=Example(AddsDetached, one, other),
        outcomes=dict(torchscript=WRONG, dynamo=REFUSED),
    ),
    Rule(
        id='parameter-data',
        title='`.data` of a parameter or buffer',
        why='A constant for the TorchScript exporter, as it should be. The dynamo exporter of torch 2.13 '
        'refuses, or dies of it.',
        fix='The parameter itself, or `.detach()`.',
        failing=Example(AddsParameterData, one, other),
        passing=Example(AddsParameter, one, other),
        outcomes=dict(torchscript=RIGHT, dynamo=REFUSED),
    ),
    Rule(
        id='index-put-negative',
        title='A write through negative indices: `t[index] = v` with `index < 0`',
        why='Older exporters wrote them as they were. ScatterND and ScatterElements of ONNX take negative '
        'indices.',
        fix='Nothing, where ONNX Runtime runs the file; for other engines `torch.where(index < 0, index + '
        'n, index)`.',
        failing=Example(
            WritesNegativeRows, lambda: (rows(), *_index([-1, 0])), lambda: (falling(), *_index([-2, 1]))
        ),
        passing=Example(
            WritesRows, lambda: (rows(), *_index([-1, 0])), lambda: (falling(), *_index([-2, 1]))
        ),
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
    ),
    Rule(
        id='index-put-many-ranks',
        title='A write through indices of rank 2 or more: `t[rows, columns] = v`',
        why='Older exporters gave wrong shapes. Today the indices are broadcast.',
        fix='Nothing, where ONNX Runtime runs the file; else one flat index and `scatter`.',
        failing=Example(
            WritesGrid,
            lambda: (rows(), *_index([[0], [2]], [[0, 1]])),
            lambda: (falling(), *_index([[3], [1]], [[2, 0]])),
        ),
        passing=Example(
            WritesFlat,
            lambda: (rows(), *_index([[0], [2]], [[0, 1]])),
            lambda: (falling(), *_index([[3], [1]], [[2, 0]])),
        ),
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
    ),
    Rule(
        id='slice-assigned',
        title='A slice that is written: `t[1:-1, :2] = v`',
        why='It becomes a chain of Shape, Range and ScatterND; right, but several nodes where a Concat '
        'would do.',
        fix='Nothing, or `torch.cat` of the parts for a smaller graph.',
        failing=Example(WritesSlice, one, more, BATCH),
        passing=Example(ConcatenatesSlices, one, more, BATCH),
        more_failing=(Example(SigmoidOfSlice, one, other),),
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
    ),
    Rule(
        id='write-to-view',
        title='A write into a view: `column = t[:, 0]; column[mask] = v`, `t.view(-1)[0] = v`, '
        '`t.chunk(2)[0].mul_(2)`',
        why='The TorchScript exporter follows writes through one indexing (`t[1:] += 1`, `t[:, '
        ':2].sigmoid_()`). It loses those into a view of a view, and into what `view`, `flatten`, '
        '`unbind`, `chunk` and `t()` return.',
        fix='`torch.where`, or `torch.cat` of new columns.',
        failing=Example(WritesColumnOfMask, one, other),
        passing=Example(WhereColumn, one, other),
        more_failing=(Example(AddsIntoView, one, other), Example(WritesFlatView, one, other)),
        outcomes=dict(torchscript=WRONG_AT_ONCE, dynamo=RIGHT),
    ),
    Rule(
        id='input-written',
        title='An input that is written: `x += 1`',
        why='The caller sees the change in PyTorch and does not in ONNX.',
        fix='A new name: `y = x + 1`.',
        failing=Example(WritesInput, one, other),
        passing=Example(NewTensor, one, other),
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
        otherwise='warning',
    ),
)
