"""Rotated regions pooled by a compiled loop: mmcv's CPU kernel, operation by operation, in float32.

1,000 regions of 7 x 7 cells with 256 channels and 4 samples take PyTorch's gathers 2.7 s of CPU time. Source:
mmcv 1.7.2 `ops/csrc/pytorch/cpu/roi_align_rotated.cpp`.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types; the docstrings give them

import math

import numpy as np

from mmdeploy_ext.base.compiled import njit

ZERO, HALF, UNIT = np.float32(0), np.float32(0.5), np.float32(1)
NO_SAMPLE = np.float32(-10000)
"""Largest sample of a cell without samples."""


@njit(cache=True, nogil=True)
def _neighbours(place, size):
    """Return the cells on both sides of a place on an axis, and its distance from the first of them."""
    place, end = max(place, ZERO), size - UNIT
    low = np.float32(math.floor(place))
    if low >= end:
        return end, end, ZERO
    return low, low + UNIT, place - low


@njit(cache=True, nogil=True)
def _pool_sample(total, table, rows, weights, is_largest):
    for channel in range(len(total)):
        value = weights[0] * table[rows[0], channel] + weights[1] * table[rows[1], channel]
        value = value + weights[2] * table[rows[2], channel]
        value = value + weights[3] * table[rows[3], channel]
        if is_largest:
            total[channel] = max(total[channel], value)
        else:
            total[channel] += value


@njit(cache=True, nogil=True)
def pooled_regions(table, geometry, places, height, width, is_largest):
    """Return pooled features (R, height * width, C) float32.

    Args:
        table: (T, C) float32, features of the cells of all maps, row by row.
        geometry: (R, 10) float32 per region, in cells of its map, whose centres are whole numbers: x and y of
            the centre; cosine and sine of the turn, counter-clockwise in a picture whose y points down; x and
            y of the first corner before the turn, from the centre; width and height of an output cell;
            samples per output cell in x and y.
        places: (R, 3) int64 per region: row of the table at which its map begins, rows and columns of the
            map.
        height: rows of output cells.
        width: columns of output cells.
        is_largest: pool the largest sample, and not the mean.
    """
    channels = table.shape[1]
    pooled = np.full((len(places), height * width, channels), NO_SAMPLE if is_largest else ZERO)
    for region in range(len(places)):
        centre_x, centre_y, cos, sin, start_x, start_y, side_x, side_y, samples_x, samples_y = geometry[
            region
        ]
        begin, map_height, map_width = places[region]
        end_y, end_x = np.float32(map_height), np.float32(map_width)
        for cell in range(height * width):
            base_y = start_y + np.float32(cell // width) * side_y
            base_x = start_x + np.float32(cell % width) * side_x
            total = pooled[region, cell]
            for step_y in range(int(samples_y)):
                yy = base_y + (np.float32(step_y) + HALF) * side_y / samples_y
                for step_x in range(int(samples_x)):
                    xx = base_x + (np.float32(step_x) + HALF) * side_x / samples_x
                    y = yy * cos - xx * sin + centre_y
                    x = yy * sin + xx * cos + centre_x
                    used = UNIT if -UNIT <= y <= end_y and -UNIT <= x <= end_x else ZERO
                    y0, y1, part_y = _neighbours(y, end_y)
                    x0, x1, part_x = _neighbours(x, end_x)
                    rest_y, rest_x = (UNIT - part_y) * used, UNIT - part_x
                    part_y = part_y * used
                    weights = rest_y * rest_x, rest_y * part_x, part_y * rest_x, part_y * part_x
                    above, below = begin + np.int64(y0) * map_width, begin + np.int64(y1) * map_width
                    left, right = np.int64(x0), np.int64(x1)
                    rows = above + left, above + right, below + left, below + right
                    _pool_sample(total, table, rows, weights, is_largest)
            if is_largest:
                continue
            count = max(samples_y * samples_x, UNIT)
            for channel in range(channels):
                total[channel] = total[channel] / count
    return pooled
