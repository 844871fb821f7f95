"""Pillow's bilinear and bicubic resize in numpy, bit for bit.

Source: Pillow 13, `src/libImaging/Resample.c`, 8 bits per channel. Pillow before 13 always begins with
columns, one grey level apart where 13 begins with rows.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

PRECISION_BITS = 32 - 8 - 2
"""Fractional bits of integer weights."""


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel, a = -0.5."""
    x, a = np.abs(x), -0.5
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    'bilinear': (lambda x: np.maximum(1 - np.abs(x), 0), 1.0),
    'bicubic': (_bicubic, 2.0),
}
"""Name -> kernel and radius in pixels of the smaller of source and output."""


def resize_pillow(
    image: np.ndarray,
    height: int,
    width: int,
    resample: str = 'bilinear',
    rows: tuple[int, int] | None = None,
) -> np.ndarray:
    """Resize (h, w, C) uint8 along one axis, round to uint8, then along the other.

    `resample` is a key of `FILTERS`; `rows` limits the result to a half-open range.
    """
    removed_rows, removed_columns = image.shape[0] - height, image.shape[1] - width
    first, last = rows or (0, height)
    if removed_rows > max(2 * removed_columns, 0):
        image = _resample_rows(image, height, resample)[first:last]
        return _resample_columns(image, width, resample)
    if height == image.shape[0]:
        return _resample_columns(image[first:last], width, resample)
    starts, weights = _coefficients(image.shape[0], height, resample)
    starts, weights = starts[first:last], weights[first:last]
    top = int(starts.min())
    bottom = min(int(starts.max()) + weights.shape[1], image.shape[0])
    image = _resample_columns(image[top:bottom], width, resample)
    return _weighted_rows(image, starts - top, weights)


def _resample_columns(image: np.ndarray, size: int, resample: str) -> np.ndarray:
    resized = _resample_rows(np.ascontiguousarray(image.swapaxes(0, 1)), size, resample)
    return np.ascontiguousarray(resized.swapaxes(0, 1))


def _resample_rows(image: np.ndarray, size: int, resample: str) -> np.ndarray:
    if size == image.shape[0]:
        return image
    return _weighted_rows(image, *_coefficients(image.shape[0], size, resample))


def _weighted_rows(image: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = np.full((len(first), *image.shape[1:]), 1 << (PRECISION_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        rows = np.minimum(first + tap, image.shape[0] - 1)
        total += image[rows].astype(np.int32) * weights[:, tap, None, None]
    return np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=32)
def _coefficients(source: int, size: int, resample: str) -> tuple[np.ndarray, np.ndarray]:
    """First source index (size,) and fixed-point weights (size, taps) of each output index."""
    kernel, reach = FILTERS[resample]
    scale = source / size
    stretch = max(scale, 1.0)
    support = reach * stretch
    first = np.zeros(size, np.int64)
    weights = np.zeros((size, math.ceil(support) * 2 + 1), np.int32)
    for index in range(size):
        centre = (index + 0.5) * scale
        start = max(int(centre - support + 0.5), 0)
        stop = min(int(centre + support + 0.5), source)
        taps = kernel((np.arange(start, stop) - centre + 0.5) * (1 / stretch))
        total = sum(taps.tolist())
        if total:
            taps = taps / total
        first[index] = start
        fixed = np.copysign(0.5, taps) + taps * (1 << PRECISION_BITS)
        weights[index, : len(taps)] = fixed.astype(np.int32)
    first.flags.writeable = weights.flags.writeable = False  # callers share them
    return first, weights
