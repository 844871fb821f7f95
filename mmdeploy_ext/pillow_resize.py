"""Pillow's bilinear resize in numpy, bit for bit: what mmdet's `Resize(backend='pillow')` does.

Unlike OpenCV's, it averages over all source pixels that an output pixel covers. Source: Pillow 13,
`src/libImaging/Resample.c`, the 8 bits per channel path. Pillow before 13 always resizes columns first, which
differs by one grey level where 13 begins with the rows.
"""

from __future__ import annotations

import math

import numpy as np

PRECISION_BITS = 32 - 8 - 2


def resize_pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h, w, C) uint8 to `height` x `width`: one axis, rounded to uint8, then the other."""
    lost_rows, lost_columns = image.shape[0] - height, image.shape[1] - width
    for axis in (0, 1) if lost_rows > max(2 * lost_columns, 0) else (1, 0):
        size = (height, width)[axis]
        if size != image.shape[axis]:
            image = _resample_rows(image.swapaxes(0, axis), size).swapaxes(0, axis)
    return np.ascontiguousarray(image)


def _resample_rows(image: np.ndarray, size: int) -> np.ndarray:
    """Resize the first axis of a uint8 array to `size`."""
    first, weights = _coefficients(image.shape[0], size)
    total = np.full((size, *image.shape[1:]), 1 << (PRECISION_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        rows = np.minimum(first + tap, image.shape[0] - 1)
        total += image[rows].astype(np.int32) * weights[:, tap, None, None]
    return np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)


def _coefficients(source: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first source index of each output index, (size,), and fixed-point weights (size, taps)."""
    scale = source / size
    support = max(scale, 1.0)
    first = np.zeros(size, np.int64)
    weights = np.zeros((size, math.ceil(support) * 2 + 1), np.int32)
    for index in range(size):
        centre = (index + 0.5) * scale
        start = max(int(centre - support + 0.5), 0)
        stop = min(int(centre + support + 0.5), source)
        taps = np.maximum(1 - np.abs((np.arange(start, stop) - centre + 0.5) * (1 / support)), 0)
        total = sum(taps.tolist())
        if total:
            taps = taps / total
        first[index] = start
        weights[index, : len(taps)] = (0.5 + taps * (1 << PRECISION_BITS)).astype(np.int32)
    return first, weights
