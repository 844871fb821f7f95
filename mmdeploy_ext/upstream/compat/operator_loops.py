"""Compiled loops of mmcv's operators, operation by operation as in its CPU kernels, in float32.

Source: mmcv 1.7.2 `ops/csrc/pytorch/cpu/`: `modulated_deform_conv.cpp`, `roi_align_rotated.cpp`, `nms.cpp`.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types; the docstrings give them

import math

import numpy as np

from mmdeploy_ext.base.compiled import njit

ZERO, HALF, UNIT = np.float32(0), np.float32(0.5), np.float32(1)

# Deformable convolutions.


@njit(cache=True, nogil=True)
def columns_of(maps, offsets, shares, kernel_width, stride, padding, dilation):
    """Samples (C, K, h, w) float32 of the K points of a kernel; 0 beyond the maps.

    Args:
        maps: (C, H, W) float32.
        offsets: (G, K, 2, h, w) float32 y before x, in cells, of G groups of channels.
        shares: (G, K, h, w) float32, factors.
        kernel_width: columns of the kernel.
        stride: y, x.
        padding: y, x.
        dilation: y, x.
    """
    channels, height, width = maps.shape
    groups, points, rows, columns = shares.shape
    samples = np.zeros((channels, points, rows, columns), np.float32)
    for channel in range(channels):
        group = channel // (channels // groups)
        for point in range(points):
            start_y = (point // kernel_width) * dilation[0] - padding[0]
            start_x = (point % kernel_width) * dilation[1] - padding[1]
            for row in range(rows):
                for column in range(columns):
                    y = np.float32(row * stride[0] + start_y) + offsets[group, point, 0, row, column]
                    x = np.float32(column * stride[1] + start_x) + offsets[group, point, 1, row, column]
                    if not (-UNIT < y < height and -UNIT < x < width):
                        continue
                    low_y, low_x = np.float32(math.floor(y)), np.float32(math.floor(x))
                    top, left = int(low_y), int(low_x)
                    part_y, part_x = y - low_y, x - low_x
                    rest_y, rest_x = UNIT - part_y, UNIT - part_x
                    value = ZERO
                    if top >= 0 and left >= 0:
                        value += rest_y * rest_x * maps[channel, top, left]
                    if top >= 0 and left + 1 < width:
                        value += rest_y * part_x * maps[channel, top, left + 1]
                    if top + 1 < height and left >= 0:
                        value += part_y * rest_x * maps[channel, top + 1, left]
                    if top + 1 < height and left + 1 < width:
                        value += part_y * part_x * maps[channel, top + 1, left + 1]
                    samples[channel, point, row, column] = value * shares[group, point, row, column]
    return samples


# Rotated regions. PyTorch's gathers take 2.7 s of CPU time for 1,000 of 7 x 7 cells, 256 channels, 4 samples.


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


# Suppression of n boxes (n, 4) xyxy. `offset` is 0, or 1 for sides that count both ends.

NAIVE, LINEAR = 0, 1
"""Methods of soft suppression; 2 is Gaussian."""


@njit(cache=True, nogil=True)
def _iou(box, other, area, other_area, offset):
    width = min(box[2], other[2]) - max(box[0], other[0]) + offset
    height = min(box[3], other[3]) - max(box[1], other[1]) + offset
    shared = (width if width > ZERO else ZERO) * (height if height > ZERO else ZERO)
    return shared / (area + other_area - shared)


@njit(cache=True, nogil=True, error_model='numpy')
def suppressors(boxes, areas, threshold, offset, is_inclusive):
    """Index (n,) int64 of the kept box that suppresses each, -1 for kept ones.

    boxes (n, 4) and areas (n,) float32, best first; threshold and offset float32; `is_inclusive`: an IoU of
    `threshold` suppresses.
    """
    owners = np.full(len(boxes), -1, np.int64)
    for better in range(len(boxes)):
        if owners[better] >= 0:
            continue
        for i in range(better + 1, len(boxes)):
            if owners[i] >= 0:
                continue
            iou = _iou(boxes[better], boxes[i], areas[better], areas[i], offset)
            if iou > threshold or (is_inclusive and iou == threshold):
                owners[i] = better
    return owners


@njit(cache=True, nogil=True, error_model='numpy')
def soften(rows, areas, indices, threshold, sigma, min_score, method, offset):
    """Number of rows that are left; rows, areas and indices are put into the order of selection.

    rows (n, 5) box and score, areas (n,) float32; indices (n,) int64; threshold, sigma, min_score and offset
    float32.
    """
    count = len(rows)
    i = 0
    while i < count:
        best = i
        for j in range(i + 1, count):
            if rows[best, 4] < rows[j, 4]:
                best = j
        for column in range(5):
            rows[i, column], rows[best, column] = rows[best, column], rows[i, column]
        areas[i], areas[best] = areas[best], areas[i]
        indices[i], indices[best] = indices[best], indices[i]
        j = i + 1
        while j < count:
            iou = _iou(rows[i], rows[j], areas[i], areas[j], offset)
            weight = UNIT
            if method == NAIVE:
                weight = ZERO if iou >= threshold else UNIT
            elif method == LINEAR:
                weight = UNIT - iou if iou >= threshold else UNIT
            else:
                weight = np.float32(math.exp(-(iou * iou) / sigma))
            rows[j, 4] *= weight
            if rows[j, 4] < min_score:
                count -= 1
                rows[j] = rows[count]
                areas[j], indices[j] = areas[count], indices[count]
                j -= 1
            j += 1
        i += 1
    return count
