"""Writes into tensors."""
# ruff: noqa: D101 - the examples are shown in the documentation, as short as users write them

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docs._pages.lint.data import BATCH, falling, more, one, other, rows
from docs._pages.lint.example import Example, Examples


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


class RectifiesSlice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x - 0.5
        F.relu(x[:, :2], inplace=True)
        return x


class SumIntoRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        torch.add(x[:, 0], 1, out=x[:, 1])
        return x


class WritesFlatView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[0] = 5.0
        return x


class AddsIntoNamedRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        row = x[0]
        row += x[1]
        return x


class NumberIntoNamedRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        row = x[0]
        row[1] = 5.0
        return x


class PowerOfNamedRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        rows = x[1:]
        rows **= 2
        return x


class MasksNamedColumn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        large = x >= 0
        column = large[:, 0]
        column &= x[:, 1] > 0.5
        return large


class SigmoidOfSlice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :2].sigmoid_()
        return x


class WritesInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return x * 2


class SquaresInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x **= 2
        return x * 2


class NewTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 1) * 2


def _index(*numbers: list[int]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(item) for item in numbers)


EXAMPLES = {
    'tensor-data': Examples(
        failing=Example(AddsData, one, other),
        passing=Example(AddsDetached, one, other),
    ),
    'parameter-data': Examples(
        failing=Example(AddsParameterData, one, other),
        passing=Example(AddsParameter, one, other),
    ),
    'index-put-negative': Examples(
        failing=Example(
            WritesNegativeRows, lambda: (rows(), *_index([-1, 0])), lambda: (falling(), *_index([-2, 1]))
        ),
        passing=Example(
            WritesRows, lambda: (rows(), *_index([-1, 0])), lambda: (falling(), *_index([-2, 1]))
        ),
    ),
    'index-put-many-ranks': Examples(
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
    ),
    'slice-assigned': Examples(
        failing=Example(WritesSlice, one, more, BATCH),
        passing=Example(ConcatenatesSlices, one, more, BATCH),
        more_failing=(Example(SigmoidOfSlice, one, other),),
    ),
    'write-to-view': Examples(
        failing=Example(WritesColumnOfMask, one, other),
        passing=Example(WhereColumn, one, other),
        more_failing=tuple(
            Example(module, one, other)
            for module in (
                AddsIntoView,
                RectifiesSlice,
                SumIntoRow,
                WritesFlatView,
                AddsIntoNamedRow,
                NumberIntoNamedRow,
                PowerOfNamedRows,
                MasksNamedColumn,
            )
        ),
    ),
    'input-written': Examples(
        failing=Example(WritesInput, one, other),
        passing=Example(NewTensor, one, other),
        more_failing=(Example(SquaresInput, one, other),),
    ),
}
