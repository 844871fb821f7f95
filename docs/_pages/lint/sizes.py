"""Sizes that become fixed numbers; they matter for axes that stay dynamic."""
# ruff: noqa: D101 - the examples are shown in the documentation, as short as users write them

from __future__ import annotations

import torch
from torch import Tensor, nn

from docs._pages.lint.data import BATCH, more, one, rows
from docs._pages.lint.example import Example, Examples


class MeanByLen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0) / len(x)


class MeanByShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0) / x.shape[0]


class HalfTheRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[: int(x.shape[0] / 2)]


class DoubledWhenMany(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 5:
            return x * 2
        return x


class DoubledByWhere(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        count = torch.ones_like(x[:, 0]).sum()
        return torch.where(count > 5, x * 2, x)


class RowByRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row * (index + 1) for index, row in enumerate(x)])


class AllRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(1, x.shape[0] + 1)[:, None]


class RowByNumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[index] * (index + 1) for index in range(x.shape[0])])


class RowByCount(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        count, _ = x.shape
        done = []
        for index in range(count):
            done.append(x[index] * (index + 1))
        return torch.stack(done)


class GrownInPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        count, columns = x.shape
        count += 2
        return torch.cat([torch.zeros(count, columns), x])[count - x.shape[0] :]


class Grown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        count, columns = x.shape
        grown = count + 2
        return torch.cat([torch.zeros(grown, columns), x])[grown - x.shape[0] :]


class BestOfAtMostFive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].topk(min(5, x.shape[0]))[0]


class BestOfAll(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].sort(descending=True)[0][:5]


EXAMPLES = {
    'size-to-python': Examples(
        failing=Example(MeanByLen, one, more, BATCH),
        passing=Example(MeanByShape, one, more, BATCH),
        more_failing=(Example(HalfTheRows, one, more, BATCH),),
        about_sizes=True,
    ),
    'size-in-branch': Examples(
        failing=Example(DoubledWhenMany, one, more, BATCH),
        passing=Example(DoubledByWhere, one, more, BATCH),
        about_sizes=True,
    ),
    'size-in-loop': Examples(
        failing=Example(RowByRow, one, more, BATCH),
        passing=Example(AllRows, one, more, BATCH),
        more_failing=(Example(RowByNumber, one, more, BATCH), Example(RowByCount, one, more, BATCH)),
        about_sizes=True,
    ),
    'size-changed-in-place': Examples(
        failing=Example(GrownInPlace, one, more, BATCH),
        passing=Example(Grown, one, more, BATCH),
        about_sizes=True,
    ),
    'topk-from-size': Examples(
        failing=Example(BestOfAtMostFive, lambda: (rows(6),), one, BATCH),
        passing=Example(BestOfAll, lambda: (rows(6),), one, BATCH),
        more_failing=(Example(BestOfAtMostFive, one, more, BATCH),),
        about_sizes=True,
    ),
}
