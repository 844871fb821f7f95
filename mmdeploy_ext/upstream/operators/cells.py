"""Points to cells: the last point of each, or the sum of all, in an order fixed for every engine.

Glossary: N images, P points, K cells, C channels, R, R2, R3 rows of the three tables, W width of the third.
"""
# ruff: noqa: ANN001, ANN202, RUF005 - onnxscript reads the bodies

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mmdeploy_ext.graphs.script import ZERO, part
from mmdeploy_ext.upstream.operators.operator import LIBRARY_OPERATORS, LibraryOperator, Operator, register


def _eager(cells: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    order = torch.arange(1, cells.shape[1] + 1, device=cells.device).expand_as(cells)
    last = cells.new_zeros((len(cells), count + 1)).scatter_reduce(1, cells, order, 'amax')[:, :-1]
    return torch.cat([values.new_zeros((len(values), 1)), values], 1).gather(1, last)


def _last_in_cell(op: Any) -> Callable[..., Any]:
    def body(cells, values, count: int):
        size = op.Reshape(op.Constant(value_int=count), [1])
        images = op.Shape(cells, start=0, end=1)
        points = op.Shape(cells, start=1, end=2)
        numbers = op.Range(1, op.Squeeze(points, [0]) + 1, 1)
        order = op.Expand(numbers, op.Concat(images, points, axis=0))
        table = op.ConstantOfShape(op.Concat(images, size + [1], axis=0), value=ZERO)
        last = op.ScatterElements(table, cells, order, axis=1, reduction='max')
        column = op.Expand([0.0], op.Concat(images, [1], axis=0))
        every = op.GatherElements(op.Concat(column, values, axis=1), last, axis=1)
        found = op.Slice(every, [0], size, [1])
        return found

    return body


LAST_IN_CELL = register(
    Operator(
        'LastInCell',
        _eager,
        inputs=dict(cells='N P', values='N P'),
        outputs=('found',),
        example=lambda: (torch.tensor([[0, 2, 2, 4]]), torch.rand(1, 4)),
        shapes=lambda cells, values, count: values.new_empty((cells.shape[0], count)),
        body=_last_in_cell,
    )
)
"""Cells and values (N, P), number of cells K -> (N, K)."""


def _tables(
    cells: torch.Tensor, count: int, first: int, second: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    counts = torch.bincount(cells, minlength=count + 1)[:count]
    sorted_cells, order = torch.sort(cells, stable=True)
    inside = int(counts.sum())
    sorted_cells, values = sorted_cells[:inside], order[:inside] + 1
    rank = torch.arange(inside, device=cells.device) - (counts.cumsum(0) - counts)[sorted_cells]
    slots, base, tables = torch.zeros_like(counts), 0, []
    for level, width in enumerate((first, second, 0)):
        width = width or max(1, int(counts.max()))
        rows = torch.where(counts > min(level, 1), (counts + width - 1) // width, 0)
        first_rows = rows.cumsum(0) - rows + 1
        table = counts.new_zeros(int(rows.sum()) + 1, width)
        row, has_row = first_rows[sorted_cells] + rank // width, rows[sorted_cells] > 0
        table[row[has_row], (rank % width)[has_row]] = values[has_row]
        slots = torch.where(rows > 0, first_rows + base, slots)
        counts, rank, values, base = rows, rank // width, row, base + len(table)
        tables.append(table)
    return tables[0], tables[1], tables[2], slots


def _table_shapes(cells: torch.Tensor, count: int, first: int, second: int) -> tuple[torch.Tensor, ...]:
    lines = [torch.library.get_ctx().new_dynamic_size() for _ in range(4)]
    shapes = (lines[0], first), (lines[1], second), (lines[2], lines[3]), (count,)
    return tuple(cells.new_empty(shape) for shape in shapes)


def _cell_tables(op: Any) -> Callable[..., Any]:
    @part(op)
    def level(counts, found, rank, values, width, least, base, last):
        rows = op.Where(counts > least, (counts + (width - 1)) / width, [0])
        first_rows = op.CumSum(rows, 0, exclusive=1) + [1]
        lines = op.ReduceSum(rows) + [1]
        area = lines * width
        next_rank = rank / width
        row = op.Gather(first_rows, found) + next_rank
        cell = row * width + op.Mod(rank, width)
        place = op.Where(op.Gather(rows, found) > [0], cell, area)
        full = op.ScatterElements(op.Expand([0], area + [1]), place, values, axis=0, reduction='max')
        table = op.Reshape(op.Slice(full, [0], area), op.Concat(lines, width, axis=0))
        slots = op.Where(rows > [0], first_rows + base, last)
        return table, rows, next_rank, row, base + lines, slots

    def body(cells, count: int, first: int, second: int):
        size = op.Reshape(op.Constant(value_int=count), [1])
        width0 = op.Reshape(op.Constant(value_int=first), [1])
        width1 = op.Reshape(op.Constant(value_int=second), [1])
        points = op.Shape(cells)
        ones = op.Expand([1], points)
        all_counts = op.ScatterElements(op.Expand([0], size + [1]), cells, ones, axis=0, reduction='add')
        counts = op.Slice(all_counts, [0], size)
        inside = op.ReduceSum(counts)
        ordered, order = op.TopK(cells, points, axis=0, largest=0, sorted=1)
        found = op.Slice(ordered, [0], inside)
        values = op.Slice(order, [0], inside) + [1]
        begins = op.Gather(op.CumSum(counts, 0, exclusive=1), found)
        rank = op.Range(0, op.Squeeze(inside, [0]), 1) - begins
        empty = op.Expand([0], size)
        table0, counts1, rank1, values1, base1, slots0 = level(
            counts, found, rank, values, width0, [0], [0], empty
        )
        table1, counts2, rank2, values2, base2, slots1 = level(
            counts1, found, rank1, values1, width1, [1], base1, slots0
        )
        width2 = op.Max(op.ReduceMax(counts2), [1])
        table2, _counts3, _rank3, _values3, _base3, slots2 = level(
            counts2, found, rank2, values2, width2, [1], base2, slots1
        )
        return table0, table1, table2, slots2

    return body


CELL_TABLES = register(
    Operator(
        'CellTables',
        _tables,
        inputs=dict(cells='P'),
        outputs=('table0', 'table1', 'table2', 'slots2'),
        example=lambda: (torch.tensor([0, 2, 2, 4, 2, 2, 2, 2]),),
        shapes=_table_shapes,
        body=_cell_tables,
    )
)
"""Cells (P,), K, and the widths of the first two tables -> tables and slots."""


class CellTables(torch.nn.Module):
    """Tables of the points of each cell, by which `sum_by_tables` gathers a sum per cell.

    The first table's rows hold a cell's points in order; the second's, several rows of the first; the
    third's, several rows of the second.
    """

    WIDTHS = 16, 4  # columns of the first and of the second table

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the three tables and the slots.

        Args:
            cells: (P,) int64, the cell of each point; K for a point in no cell.

        Returns:
            Tables (R, 16), (R2, 4) and (R3, W), and slots (K,), all int64. Entries are points, numbered from
                1, or rows of the table before; 0 is empty, and so is row 0. A cell's slot is its row, counted
                through all three tables; 0 for an empty cell.
        """
        return CELL_TABLES(cells, self.count, *self.WIDTHS)


def sum_by_tables(sums: torch.Tensor, tables: Sequence[torch.Tensor], slots: torch.Tensor) -> torch.Tensor:
    """Return the sums per cell (K, C).

    Args:
        sums: (R, C), sum of each row of the first table; 0 in row 0.
        tables: the second and third table of `CellTables`.
        slots: (K,) int64 of `CellTables`; slot 0 has the sum 0.
    """
    levels = [sums]
    for table in tables:
        levels.append(levels[-1][table].sum(1))
    return torch.cat(levels)[slots]


def sum_in_order(cells: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """Return (K, C) sums per cell in the order of the points, differentiable; not exported.

    `cells` (P,) int64 are 0..K, K for no cell; `values` (P, C); `count` is K.
    """
    grid = values.new_zeros((count + 1, values.shape[1]))
    if values.is_cuda:
        return grid.index_put((cells,), values, accumulate=True)[:count]
    return grid.index_add(0, cells, values)[:count]


class LastInCell(torch.nn.Module):
    """The value of the last point of each cell, 0 for a cell without points."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, cells: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return (N, K) float32, the value of each cell's last point.

        `cells` (N, P) int64 are 0..K, K for no cell; `values` (N, P) float32.
        """
        return LAST_IN_CELL(cells, values, self.count)


LIBRARY_OPERATORS.append(
    LibraryOperator(
        title=('points in cells', "ScatterElements with reduction 'max'"),
        opset=18,  # the first with the reduction 'max'
        types=('LastInCell', 'CellTables'),
    )
)
