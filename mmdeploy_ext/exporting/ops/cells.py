"""Points to cells: the last point of each, or the sum of all, whatever the engine and its threads.

What the exporters of torch write for `index_put(accumulate=True)` keeps one of several points of a cell, and
for `scatter_reduce` ONNX Runtime refuses the shapes.

Glossary: N images, P points, K cells, C channels.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from mmdeploy_ext.exporting.exporter import LIBRARY_OPERATORS, LibraryOperator
from mmdeploy_ext.exporting.ops.exporters import register
from mmdeploy_ext.exporting.ops.operator import Operator

FIRST_OPSET = 18
"""Before it ScatterElements knows no largest."""


def _eager(cells: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    order = torch.arange(1, cells.shape[1] + 1, device=cells.device).expand_as(cells)
    last = cells.new_zeros((len(cells), count + 1)).scatter_reduce(1, cells, order, 'amax')[:, :-1]
    return torch.cat([values.new_zeros((len(values), 1)), values], 1).gather(1, last)


LAST_IN_CELL = register(
    Operator(
        'LastInCell',
        _eager,
        inputs=dict(cells='N P', values='N P'),
        outputs=('found',),
        example=lambda: (torch.tensor([[0, 2, 2, 4]]), torch.rand(1, 4), 4),
        shapes=lambda cells, values, count: values.new_empty((cells.shape[0], count)),
        body="""
        LastInCell <count> (cells, values) => (found) {
            zero = Constant <value = int64[1] {0}> ()
            one = Constant <value = int64[1] {1}> ()
            start = Constant <value = int64 {1}> ()
            none = Constant <value = float[1] {0}> ()
            single = Constant <value_int: int = @count> ()
            size = Reshape (single, one)
            more = Add (size, one)
            images = Shape <start = 0, end = 1> (cells)
            points = Shape <start = 1, end = 2> (cells)
            shape = Concat <axis = 0> (images, points)
            many = Squeeze (points, zero)
            stop = Add (many, start)
            numbers = Range (start, stop, start)
            order = Expand (numbers, shape)
            table_shape = Concat <axis = 0> (images, more)
            table = ConstantOfShape <value = int64[1] {0}> (table_shape)
            last = ScatterElements <axis = 1, reduction = "max"> (table, cells, order)
            column_shape = Concat <axis = 0> (images, one)
            column = Expand (none, column_shape)
            padded = Concat <axis = 1> (column, values)
            every = GatherElements <axis = 1> (padded, last)
            found = Slice (every, zero, size, one)
        }""",
    )
)


def _sum(cells: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    grid = values.new_zeros((count + 1, values.shape[1]))
    return grid.index_put((cells,), values, accumulate=True)[:count]


sum_in_cell = register(
    Operator(
        'SumInCell',
        _sum,
        inputs=dict(cells='P', values='P C'),
        outputs=('found',),
        example=lambda: (torch.tensor([0, 2, 2, 4]), torch.rand(4, 3), 4),
        shapes=lambda cells, values, count: values.new_empty((count, values.shape[1])),
        body="""
        SumInCell <count> (cells, values) => (found) {
            zero = Constant <value = int64[1] {0}> ()
            one = Constant <value = int64[1] {1}> ()
            last = Constant <value = int64[1] {-1}> ()
            single = Constant <value_int: int = @count> ()
            size = Reshape (single, one)
            more = Add (size, one)
            channels = Shape <start = 1, end = 2> (values)
            shape = Concat <axis = 0> (more, channels)
            table = ConstantOfShape <value = float[1] {0}> (shape)
            places = Unsqueeze (cells, last)
            every = ScatterND <reduction = "add"> (table, places, values)
            found = Slice (every, zero, size, zero)
        }""",
    )
)
"""cells (P,) int64, K for points in none, values (P, C) -> (K, C) sums, added in the order of the points."""


def _keep_cells(context: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    context.save_for_backward(inputs[0])


def _gradient(context: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor, None]:
    """Return that of the values: that of their cell; 0 for points in none."""
    (cells,) = context.saved_tensors
    return None, torch.nn.functional.pad(gradient, (0, 0, 0, 1))[cells], None


torch.library.register_autograd(sum_in_cell.qualified, _gradient, setup_context=_keep_cells)


class LastInCell(torch.nn.Module):
    """The value of the last point of each cell; 0 where there is none.

    Args:
        count: K.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, cells: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return (N, K) float32.

        Args:
            cells: (N, P) int64, K for points in none.
            values: (N, P) float32.
        """
        return LAST_IN_CELL(cells, values, self.count)


LIBRARY_OPERATORS.append(
    LibraryOperator(
        title=('points of which the last in a cell counts', "ScatterElements with reduction 'max'"),
        patch=contextlib.nullcontext,
        opset=FIRST_OPSET,
        inside=lambda module: any(isinstance(one, LastInCell) for one in module.modules()),
    )
)
