"""The two bilinear resizes of masks, and the cut between them, as one matrix per axis.

`exporting/postprocess/mask_resize.py` has the same in a graph.

Glossary: H4, W4 size of the masks that a network gives, h, w size of the results, in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


def interpolation(source: int, target: int) -> np.ndarray:
    """Return the weights (target, source) float32 of one bilinear resize with half-pixel centres.

    The product of the weights and a column of `source` pixels is the column of `target` pixels; beyond its
    ends the outermost pixel counts. Both numbers are 1 or more.
    """
    scale = np.float32(source) / np.float32(target)
    place = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    place = np.clip(place, 0, source - 1).astype(np.float32)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(source, dtype=np.float32)), 0)


def composed(size: int, crop: int, target: int, ratio: int) -> np.ndarray:
    """Return the weights (target, size) float32 of an axis of a mask: resize, cut, resize again.

    Args:
        size: pixels of the mask along the axis.
        crop: pixels that are left, from the first on, after the resize to `size * ratio`, 1 or more.
        target: pixels of the result.
        ratio: pixels after the first resize per pixel of the mask.
    """
    return interpolation(crop, target) @ interpolation(size, size * ratio)[:crop]


def resizing(
    size: Sequence[int], img_shape: Sequence[float], ori_shape: Sequence[int], ratio: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of rows (h, H4) and of columns (w, W4), float32, of both resizes and the cut.

    A mask (H4, W4) becomes `rows @ mask @ columns.T`, (h, w).

    Args:
        size: H4, W4.
        img_shape: height and width of the input before padding, a fraction is dropped; 0, and what is more
            than the input, means all of it.
        ori_shape: height and width of the results; 0 means those of the padded input.
        ratio: pixels of the input per pixel of the masks.
    """
    weights = []
    for side, before, after in zip(size, img_shape, ori_shape, strict=True):
        padded = side * ratio
        crop = min(int(before), padded) if before > 0 else padded
        weights.append(composed(side, crop, int(after) if after > 0 else padded, ratio))
    return tuple(weights)
