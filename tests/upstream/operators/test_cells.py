"""Sums per cell by tables: every point once, whatever falls where, in ONNX Runtime as in PyTorch."""

import numpy as np
import pytest
import torch

from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.upstream.operators.cells import CellTables, LastInCell, sum_by_tables, sum_in_order
from toy_graphs import run_file

COUNT, POINTS = 7, 3000
NAMES = 'first', 'second', 'third', 'slots'
MOST = 16 * 4
"""Points of a cell that two tables hold; with more the third has a row of it."""


def drawn(*sizes):
    """Return cells (POINTS,) with so many points in the first cells, in no order, the rest outside."""
    found = np.full(POINTS, COUNT)
    for cell, (stop, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True)):
        found[stop - size : stop] = cell
    return torch.from_numpy(np.random.default_rng(0).permutation(found))


CASES = {
    'all outside': drawn(),
    'full rows': drawn(16, 32, MOST, 2 * MOST),
    'one more than a row': drawn(17, 0, 33, MOST + 1, 2 * MOST + 1),
    'all in the last': drawn(0, 0, 0, 0, 0, 0, POINTS),
    'any': drawn(900, 3, 0, 70, 500, 64, 1),
}


@pytest.fixture(scope='module')
def exported():
    cells = CASES['any']
    return export_module(
        CellTables(COUNT), (cells,), opset=18, input_names=('cells',),
        output_names=NAMES, dynamic=dict(cells={0: 'P'}),
    )  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_the_file_gives_the_tables_of_pytorch(exported, case):
    cells = CASES[case]
    wanted = CellTables(COUNT)(cells)
    found = run_file(exported, (cells.numpy(),), ('cells',))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


@pytest.mark.parametrize('case', CASES)
def test_sums_by_tables_are_those_of_the_cells(case):
    cells = CASES[case]
    values = torch.rand(POINTS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, *others, slots = CellTables(COUNT)(cells)
    rows = torch.nn.functional.pad(values, (0, 0, 1, 0))[first].sum(1)
    found = sum_by_tables(rows, others, slots)
    wanted = torch.stack([values[cells == cell].sum(0) for cell in range(COUNT)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    torch.testing.assert_close(sum_in_order(cells, values, COUNT), wanted, rtol=0, atol=1e-11)


def test_the_last_point_of_a_cell_counts_in_the_file_too():
    cells, values = torch.tensor([[0, 2, 2, 3, 2], [3, 3, 1, 3, 0]]), torch.arange(10.0).reshape(2, 5) + 1
    model = export_module(
        LastInCell(3), (cells, values), opset=18, input_names=('cells', 'values'),
        output_names=('found',), dynamic=dict(cells={0: 'N', 1: 'P'}, values={0: 'N', 1: 'P'}),
    )  # fmt: skip
    for at in (slice(0, 2), slice(1, 2)):
        (found,) = run_file(model, (cells[at].numpy(), values[at].numpy()), ('cells', 'values'))
        np.testing.assert_array_equal(found, [[1, 0, 5], [10, 8, 0]][at])
