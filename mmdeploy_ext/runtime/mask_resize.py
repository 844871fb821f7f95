"""Two bilinear resizes of masks and the cut between them, as one matrix per axis.

H4, W4 size of the network's masks, h, w of results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def interpolation(source: int, target: int) -> np.ndarray:
    """Weights (target, source) float32 of a bilinear resize with half-pixel centres and clamped ends."""
    scale = np.float32(source) / np.float32(target)
    place = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    place = np.clip(place, 0, source - 1).astype(np.float32)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(source, dtype=np.float32)), 0)


def composed(size: int, crop: int, target: int, ratio: int) -> np.ndarray:
    """Weights (target, size) float32: resize to `size * ratio`, cut to `crop`, resize to `target`."""
    return interpolation(crop, target) @ interpolation(size, size * ratio)[:crop]


def resizing(
    size: Sequence[int], img_shape: Sequence[float], ori_shape: Sequence[int], ratio: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of rows (h, H4) and columns (w, W4), float32: `rows @ mask @ columns.T` is (h, w).

    `size` H4, W4; `img_shape` height, width before padding (0 or too much: all); `ori_shape` of results (0:
    the padded input); `ratio` input pixels per mask pixel.
    """
    weights = []
    for side, before, after in zip(size, img_shape, ori_shape, strict=True):
        padded = side * ratio
        crop = min(int(before), padded) if before > 0 else padded
        weights.append(composed(side, crop, int(after) if after > 0 else padded, ratio))
    return tuple(weights)


# Grid lines of Decoupled SOLO: columns and rows of its cells.


def lines(num_grids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Index (S,) int64 of each cell's column line, and of its row line, over all levels.

    `num_grids` is rows (= columns) per level; cells are in row-major order, level after level.
    """
    ends = np.cumsum(num_grids)
    levels = [np.arange(end - grid, end) for end, grid in zip(ends, num_grids, strict=True)]
    columns, rows = ([repeat(level, len(level)) for level in levels] for repeat in (np.tile, np.repeat))
    return np.concatenate(columns), np.concatenate(rows)
