"""The two bilinear resizes of instance masks as one product A S B^T per mask, and the threshold.

mmdet resizes soft masks to the padded input, crops to the image, resizes to the original and compares. Both
resizes are linear and separable, so a row matrix A and a column matrix B do the same without a map at input
size; one direct resize would not (IoU down to 0.83 on small masks).

Glossary: B batch, n masks, H4, W4 size of the soft masks, h, w size of the results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmdeploy_ext.exporting.ops.bands import column_band, row_band
from mmdeploy_ext.exporting.postprocess.sizes import hw

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECES = 8
"""Bands of rows that are resized one after the other: only the boolean result is ever whole."""

COLUMN_PIECES = 4
"""Bands of columns: a band needs few columns of the soft masks, so most of the product is left out."""


def interpolation(source: torch.Tensor, target: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return bilinear weights (..., t, c): row t of the result is their product with the source.

    Args:
        source: (..., 1, 1) float32, how long the source is; half-pixel centres.
        target: (t, 1) float32, 0, 1, 2 ...: positions of the result.
        columns: (c,) float32, 0, 1, 2 ...: positions of the source and beyond, whose weight is 0.
    """
    length = target.shape[0] * torch.ones_like(source)
    place = (target + 0.5) * (source / length) - 0.5
    place = torch.minimum(place.clamp(min=0), source - 1)
    return (1 - (place - columns).abs()).clamp(min=0)


def composed(size: torch.Tensor, crop: torch.Tensor, target: torch.Tensor, ratio: int) -> torch.Tensor:
    """Return the weights (B, t, size) of: resize by `ratio`, crop, resize.

    Args:
        size: () int64, H4 or W4.
        crop: (B, 1, 1) float32, length after the crop.
        target: () int64, length of the result.
        ratio: of the first resize.
    """
    upsampled = size * ratio
    middle = _steps(upsampled, crop)
    first = interpolation(size.to(crop.dtype).reshape(1, 1), middle[:, None], _steps(size, crop))
    second = interpolation(crop, _steps(target, crop)[:, None], middle)
    return second @ first


def resizing_of(
    maps: torch.Tensor, img_shape: torch.Tensor, ori_shape: torch.Tensor, ratio: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of rows (B, h, H4) and of columns (B, w, W4): resize to the input, crop, resize.

    Args:
        maps: (B, n, H4, W4); only its size is used.
        img_shape: (B, 2) float32 height and width before padding; 0 means all of the input.
        ori_shape: (2,) int64 height and width of the results; 0 means those of the input.
        ratio: pixels of the input per pixel of the maps.
    """
    size = hw(maps)
    padded = size * ratio
    whole = padded.to(img_shape)[None]
    crop = torch.where(img_shape > 0, torch.minimum(img_shape, whole), whole)
    target = torch.where(ori_shape > 0, ori_shape, padded)
    rows = composed(size[0], crop[:, :1, None], target[0], ratio)
    return rows, composed(size[1], crop[:, 1:, None], target[1], ratio)


def resizing(size: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the weights (t, size) float32 of one bilinear resize between two lengths () int64."""
    length = size.to(torch.float32).reshape(1, 1)
    return interpolation(length, _steps(target, length)[:, None], _steps(size, length))


def _steps(count: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device)


def resize_and_threshold(
    soft: torch.Tensor, img_shape: torch.Tensor, ori_shape: torch.Tensor, ratio: int, mask_thr: float
) -> torch.Tensor:
    """Resize soft masks as mmdet does and compare.

    Args:
        soft: (B, n, H4, W4) float32 probabilities.
        img_shape: (B or 1, 2) float32 height and width before padding; 0 means all of the soft masks.
        ori_shape: (2,) int64 height and width of the results; 0 means all of the soft masks.
        ratio: pixels of the input per pixel of the soft masks.
        mask_thr: probability that a pixel must exceed.

    Returns:
        (B, n, h, w) bool.
    """
    size = hw(soft).to(ori_shape)
    padded = size * ratio
    whole = padded.to(img_shape)[None]
    # sums, since TensorRT takes a Where of no two axes before a Slice
    crop = torch.minimum(img_shape.clamp(min=0) + (img_shape <= 0).to(whole) * whole, whole)
    target = torch.where(ori_shape > 0, ori_shape, padded)
    rows = composed(size[0], crop[:, :1, None], target[0], ratio)
    columns = composed(size[1], crop[:, 1:, None], target[1], ratio)
    ends = _bands(COLUMN_PIECES, crop[:, 1], target[1], ratio)
    wide = torch.cat([column_band(columns[:, None], soft, *band) for band in ends], dim=3)
    ends = _bands(PIECES, crop[:, 0], target[0], ratio)
    return torch.cat([row_band(rows[:, None], wide, *band) > mask_thr for band in ends], dim=2)


def _bands(
    pieces: int, crop: torch.Tensor, target: torch.Tensor, ratio: int
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield start, stop, low, high (1,) int64 of nearly equal parts of an axis of the results.

    `low` and `high` are the first and one after the last line of the soft masks that a part needs. One line
    more on each side than the two interpolations reach covers the rounding of their positions.
    """
    edges = target * torch.arange(pieces + 1, device=target.device) // pieces
    start, stop = edges[:-1], edges[1:]
    scale = crop[:, None] / target.to(crop.dtype)
    first, last = ((edge.to(crop.dtype) + 0.5) * scale - 0.5 for edge in (start, stop - 1))
    low = torch.floor((torch.floor(first.amin(0)) + 0.5) / ratio - 0.5) - 1
    high = torch.floor((torch.floor(last.amax(0)) + 1.5) / ratio - 0.5) + 3
    low, high = low.clamp(min=0).to(torch.int64), high.clamp(min=1).to(torch.int64)
    yield from zip(*(ends.split(1) for ends in (start, stop, low, high)), strict=True)
