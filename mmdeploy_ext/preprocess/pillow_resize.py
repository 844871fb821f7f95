"""Pillow's bilinear and bicubic resize in numpy, bit for bit.

mmdet's `Resize(backend='pillow')` is the bilinear one, StreamPETR's `ResizeCropFlipRotImage` the bicubic one.
Unlike OpenCV's, they average over all source pixels that an output pixel covers. Source: Pillow 13,
`src/libImaging/Resample.c`, the 8 bits per channel path. Pillow before 13 always resizes columns first, which
differs by one grey level where 13 begins with the rows.
"""

import math
from collections.abc import Callable

import numpy as np

PRECISION_BITS = 32 - 8 - 2
"""Bits behind the point of weights, which are integers, as Pillow has them."""


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Return Keys' cubic kernel with a = -0.5."""
    x, a = np.abs(x), -0.5
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    'bilinear': (lambda x: np.maximum(1 - np.abs(x), 0), 1.0),
    'bicubic': (_bicubic, 2.0),
}
"""Name -> kernel and its radius, in pixels of the smaller one of source and output."""


def resize_pillow(
    image: np.ndarray,
    height: int,
    width: int,
    resample: str = 'bilinear',
    rows: tuple[int, int] | None = None,
) -> np.ndarray:
    """Resize (h, w, C) uint8, of C channels: one axis, rounded to uint8, then the other.

    Columns come first; rows do if they shrink, by more than twice as many pixels as the columns.

    Args:
        image: (h, w, C) uint8.
        height: height of the result.
        width: width of the result.
        resample: key of `FILTERS`.
        rows: first row of the result that is computed and returned, and the one after the last; None: all.
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
    """Resize the second axis of a uint8 array to `size`."""
    resized = _resample_rows(np.ascontiguousarray(image.swapaxes(0, 1)), size, resample)
    return np.ascontiguousarray(resized.swapaxes(0, 1))


def _resample_rows(image: np.ndarray, size: int, resample: str) -> np.ndarray:
    """Resize the first axis of a uint8 array to `size`."""
    if size == image.shape[0]:
        return image
    return _weighted_rows(image, *_coefficients(image.shape[0], size, resample))


def _weighted_rows(image: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return one output row per row of `weights`: the sum of the source rows from `first` on, rounded."""
    total = np.full((len(first), *image.shape[1:]), 1 << (PRECISION_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        rows = np.minimum(first + tap, image.shape[0] - 1)
        total += image[rows].astype(np.int32) * weights[:, tap, None, None]
    return np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)


def _coefficients(source: int, size: int, resample: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the first source index of each output index, (size,), and fixed-point weights (size, taps)."""
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
    return first, weights
