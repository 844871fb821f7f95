"""Lines of the grids of Decoupled SOLO: the columns and the rows that its cells are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def lines(num_grids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return for every cell (S,) int64 the index of the grid line that is its column, and of that of its row.

    Lines are counted through all levels; cells are those of level after level, each row by row. `num_grids`
    are the numbers of rows, which are those of columns, of the levels.
    """
    ends = np.cumsum(num_grids)
    levels = [np.arange(end - grid, end) for end, grid in zip(ends, num_grids, strict=True)]
    columns, rows = ([repeat(level, len(level)) for level in levels] for repeat in (np.tile, np.repeat))
    return np.concatenate(columns), np.concatenate(rows)
