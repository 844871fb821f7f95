"""Points to cells: the last point of each, or the sum of all, whatever the engine and its threads.

The graphs that torch's exporters write for `index_put(accumulate=True)` keep only one of several points of a
cell, and those for `scatter_reduce` have shapes that ONNX Runtime refuses.

Glossary: N images, P points, K cells, C channels, R, R2, R3 rows of the first, second and third table, W
width of the third table.
"""

from collections.abc import Sequence

import torch

from mmdeploy_ext.exporting.ops.operator import LIBRARY_OPERATORS, LibraryOperator, Operator, register


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
        example=lambda: (torch.tensor([[0, 2, 2, 4]]), torch.rand(1, 4)),
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
"""The operator of `LastInCell`: cells and values (N, P), and the number of cells K -> (N, K)."""


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


def _level(i: int, last: str, width: str) -> str:
    """Return the ONNX text that makes table `i`, 0 to 2.

    `last` and `width` are names of values in that text: the slots after the table before, and the width of
    this table.
    """
    after = i + 1
    return f"""
            less{i} = Sub ({width}, one)
            wide{i} = Add (counts{i}, less{i})
            all{i} = Div (wide{i}, {width})
            many{i} = Greater (counts{i}, {'one' if i else 'zero'})
            counts{after} = Where (many{i}, all{i}, zero)
            before{i} = CumSum <exclusive = 1> (counts{after}, start)
            at{i} = Add (before{i}, one)
            total{i} = ReduceSum (counts{after})
            lines{i} = Add (total{i}, one)
            area{i} = Mul (lines{i}, {width})
            rank{after} = Div (rank{i}, {width})
            column{i} = Mod (rank{i}, {width})
            from{i} = Gather (at{i}, found)
            values{after} = Add (from{i}, rank{after})
            corner{i} = Mul (values{after}, {width})
            flat{i} = Add (corner{i}, column{i})
            rows{i} = Gather (counts{after}, found)
            in{i} = Greater (rows{i}, zero)
            place{i} = Where (in{i}, flat{i}, area{i})
            room{i} = Add (area{i}, one)
            blank{i} = Expand (zero, room{i})
            full{i} = ScatterElements <axis = 0, reduction = "max"> (blank{i}, place{i}, values{i})
            cut{i} = Slice (full{i}, zero, area{i})
            shape{i} = Concat <axis = 0> (lines{i}, {width})
            table{i} = Reshape (cut{i}, shape{i})
            base{after} = Add (base{i}, lines{i})
            own{i} = Add (at{i}, base{i})
            ends{i} = Greater (counts{after}, zero)
            slots{i} = Where (ends{i}, own{i}, {last})"""


def _table_shapes(cells: torch.Tensor, count: int, first: int, second: int) -> tuple[torch.Tensor, ...]:
    lines = [torch.library.get_ctx().new_dynamic_size() for _ in range(4)]
    shapes = (lines[0], first), (lines[1], second), (lines[2], lines[3]), (count,)
    return tuple(cells.new_empty(shape) for shape in shapes)


CELL_TABLES = register(
    Operator(
        'CellTables',
        _tables,
        inputs=dict(cells='P'),
        outputs=('table0', 'table1', 'table2', 'slots2'),
        example=lambda: (torch.tensor([0, 2, 2, 4, 2, 2, 2, 2]),),
        shapes=_table_shapes,
        body=f"""
        CellTables <count, first, second> (cells) => (table0, table1, table2, slots2) {{
            start = Constant <value = int64 {{0}}> ()
            step = Constant <value = int64 {{1}}> ()
            zero = Constant <value = int64[1] {{0}}> ()
            one = Constant <value = int64[1] {{1}}> ()
            counted = Constant <value_int: int = @count> ()
            size = Reshape (counted, one)
            first_width = Constant <value_int: int = @first> ()
            width0 = Reshape (first_width, one)
            second_width = Constant <value_int: int = @second> ()
            width1 = Reshape (second_width, one)
            more = Add (size, one)
            points = Shape (cells)
            ones = Expand (one, points)
            none = Expand (zero, more)
            all_counts = ScatterElements <axis = 0, reduction = "add"> (none, cells, ones)
            counts0 = Slice (all_counts, zero, size)
            inside = ReduceSum (counts0)
            sorted, order = TopK <axis = 0, largest = 0, sorted = 1> (cells, points)
            found = Slice (sorted, zero, inside)
            chosen = Slice (order, zero, inside)
            values0 = Add (chosen, one)
            before = CumSum <exclusive = 1> (counts0, start)
            begins = Gather (before, found)
            stop = Squeeze (inside, zero)
            numbers = Range (start, stop, step)
            rank0 = Sub (numbers, begins)
            base0 = Identity (zero)
            empty = Expand (zero, size){_level(0, 'empty', 'width0')}{_level(1, 'slots0', 'width1')}
            most = ReduceMax (counts2)
            width2 = Max (most, one){_level(2, 'slots1', 'width2')}
        }}""",
    )
)
"""The operator of `CellTables`: cells (P,), K, and the widths of the first two tables -> tables and slots."""


class CellTables(torch.nn.Module):
    """Tables of the points of each cell, by which `sum_by_tables` gathers a sum per cell.

    A cell's points are cut into rows of the first table, in their order; the rows of a cell that has several
    into rows of the second table; and those of a cell that has several there into one row of the third. So a
    sum per cell takes no scatter, of which engines have no exact form, and is the same on any number of
    threads.
    """

    WIDTHS = 16, 4  # columns of the first and of the second table

    def __init__(self, count: int) -> None:
        """Make tables of `count` (K) cells."""
        super().__init__()
        self.count = count

    def forward(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the three tables and the slots.

        Args:
            cells: (P,) int64, the cell of each point; K for a point in no cell.

        Returns:
            Tables (R, 16), (R2, 4) and (R3, W), and slots (K,), all int64. Entries of the first table are
            points, numbered from 1; those of the second and third are rows of the table before; an entry 0 is
            empty, and row 0 of each table has only such entries. The slot of a cell is the row with all of
            its points, counted through the three tables one behind the other; 0 for a cell without points.
        """
        return CELL_TABLES(cells, self.count, *self.WIDTHS)


def sum_by_tables(sums: torch.Tensor, tables: Sequence[torch.Tensor], slots: torch.Tensor) -> torch.Tensor:
    """Return the sums per cell (K, C).

    Args:
        sums: (R, C), the sum of the points of each row of the first table; 0 in row 0.
        tables: the second and the third table of `CellTables`.
        slots: (K,) int64 rows of the three tables one behind the other; a cell of slot 0 has the sum 0.
    """
    levels = [sums]
    for table in tables:
        levels.append(levels[-1][table].sum(1))
    return torch.cat(levels)[slots]


def sum_in_order(cells: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """Return (K, C) sums per cell, added in the order of the points; it has a gradient and is not exported.

    On CPUs only `index_add` keeps the order on several threads, on GPUs only `index_put`.

    Args:
        cells: (P,) int64, the cell of each point; K for a point in no cell.
        values: (P, C).
        count: K.
    """
    grid = values.new_zeros((count + 1, values.shape[1]))
    if values.is_cuda:
        return grid.index_put((cells,), values, accumulate=True)[:count]
    return grid.index_add(0, cells, values)[:count]


class LastInCell(torch.nn.Module):
    """The value of the last point of each cell, 0 for a cell without points."""

    def __init__(self, count: int) -> None:
        """Give values to `count` (K) cells."""
        super().__init__()
        self.count = count

    def forward(self, cells: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return (N, K) float32, of each cell the value of its last point.

        Args:
            cells: (N, P) int64, the cell of each point; K for a point in no cell.
            values: (N, P) float32, the value of each point.
        """
        return LAST_IN_CELL(cells, values, self.count)


LIBRARY_OPERATORS.append(
    LibraryOperator(
        title=('points in cells', "ScatterElements with reduction 'max'"),
        opset=18,  # the first with the reduction 'max'
        types=('LastInCell', 'CellTables'),
    )
)
