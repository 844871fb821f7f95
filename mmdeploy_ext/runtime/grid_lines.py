"""Grid lines of Decoupled SOLO: columns and rows of its cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def lines(num_grids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Index (S,) int64 of each cell's column line, and of its row line, over all levels.

    `num_grids` is rows (= columns) per level; cells are in row-major order, level after level.
    """
    ends = np.cumsum(num_grids)
    levels = [np.arange(end - grid, end) for end, grid in zip(ends, num_grids, strict=True)]
    columns, rows = ([repeat(level, len(level)) for level in levels] for repeat in (np.tile, np.repeat))
    return np.concatenate(columns), np.concatenate(rows)
