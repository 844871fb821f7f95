"""Sizes that become fixed numbers; they matter for axes that stay dynamic."""
# ruff: noqa: D101, D102 - the examples are shown in the documentation, as short as users write them

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdeploy_ext.lint.rule import FAILS, REFUSED, RIGHT, WRONG, Example, Rule
from mmdeploy_ext.lint.rules.data import BATCH, more, one, rows


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


RULES = (
    Rule(
        id='size-to-python',
        title='A size as a plain number: `len(t)`, `int(t.shape[0])`, `math.ceil(t.shape[0] / 2)`',
        why='`t.shape[0]` stays dynamic in both exporters; `len`, `int`, `float`, `round` and `math` make '
        'it the number of the example in the TorchScript exporter.',
        fix='Use `t.shape[0]` as it is; divide with `//`; round tensors, not sizes.',
        failing=Example(MeanByLen, one, more, BATCH),
        passing=Example(MeanByShape, one, more, BATCH),
        more_failing=(Example(HalfTheRows, one, more, BATCH),),
        outcomes=dict(torchscript=WRONG, dynamo=RIGHT),
        about_sizes=True,
    ),
    Rule(
        id='size-in-branch',
        title='An `if` that depends on a size',
        why='Both exporters write the branch that the example took; the dynamo exporter too gives no error.',
        fix='Make both branches one expression; or fix the axis; or export one graph per branch.',
        failing=Example(DoubledWhenMany, one, more, BATCH),
        passing=Example(DoubledByWhere, one, more, BATCH),
        outcomes=dict(torchscript=WRONG, dynamo=WRONG),
        about_sizes=True,
    ),
    Rule(
        id='size-in-loop',
        title='A loop over the rows of a tensor: `for row in t`, `range(t.shape[0])`',
        why='The TorchScript exporter writes one copy of the body per row of the example. torch.export '
        'refuses.',
        fix='One operation over the whole axis.',
        failing=Example(RowByRow, one, more, BATCH),
        passing=Example(AllRows, one, more, BATCH),
        more_failing=(Example(RowByNumber, one, more, BATCH), Example(RowByCount, one, more, BATCH)),
        outcomes=dict(torchscript=FAILS, dynamo=REFUSED),
        about_sizes=True,
    ),
    Rule(
        id='size-changed-in-place',
        title='A size changed in place: `n, c = t.shape; n += 2`',
        why="Sizes are tensors while TorchScript traces, and torch's documentation warns that `+=` changes "
        'them for everyone who reads them later.',
        fix='A new name: `grown = n + 2`.',
        failing=Example(GrownInPlace, one, more, BATCH),
        passing=Example(Grown, one, more, BATCH),
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
        about_sizes=True,
    ),
    Rule(
        id='topk-from-size',
        title='The K of a top-k taken from a size: `t.topk(min(k, t.shape[0]))`',
        why='The TorchScript exporter writes the K of the example: too few candidates on larger inputs, an '
        'error of the engine on smaller ones.',
        fix='A constant K on an axis that is padded to at least K; or sort and slice. TensorRT wants a '
        'constant K.',
        failing=Example(BestOfAtMostFive, lambda: (rows(6),), one, BATCH),
        passing=Example(BestOfAll, lambda: (rows(6),), one, BATCH),
        more_failing=(Example(BestOfAtMostFive, one, more, BATCH),),
        outcomes=dict(torchscript=FAILS, dynamo=RIGHT),
        about_sizes=True,
    ),
)
