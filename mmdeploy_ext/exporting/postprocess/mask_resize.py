"""The two bilinear resizes of instance masks as one product A S B^T per mask, and the threshold."""
# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mmdeploy_ext.graphs.script import Body
from mmdeploy_ext.upstream.operators.operator import Operator, hw, register

PIECES = 8
"""Bands of rows that are resized one after the other: only the boolean result is ever whole."""
COLUMN_PIECES = 4
"""Bands of columns: a band needs few columns of the soft masks, so most of the product is left out."""


def _band_body(axis: int) -> Body:
    is_rows = axis == 2

    def band_of(op: Any) -> Callable[..., Any]:
        def body(weights, maps, start, stop, low, high):
            used = op.Slice(op.Slice(weights, start, stop, [2]), low, high, [3])
            if is_rows:
                band = op.MatMul(used, op.Slice(maps, low, high, [2]))
            else:
                band = op.MatMul(op.Slice(maps, low, high, [3]), op.Transpose(used, perm=[0, 1, 3, 2]))
            return band

        return body

    return band_of


def _band(name: str, maps: str, axis: int) -> Operator:
    def eager(
        weights: Tensor, maps: Tensor, start: Tensor, stop: Tensor, low: Tensor, high: Tensor
    ) -> Tensor:
        used = weights[:, :, start:stop, low:high]
        return used @ maps[:, :, low:high] if axis == 2 else maps[..., low:high] @ used.transpose(2, 3)

    def shapes(weights: Tensor, maps: Tensor, *_: Tensor) -> Tensor:
        size = [*maps.shape]
        size[axis] = torch.library.get_ctx().new_dynamic_size()
        return maps.new_empty(size)

    return Operator(
        name,
        eager,
        inputs=dict(weights='B 1 t s', maps=maps, start='1', stop='1', low='1', high='1'),
        outputs=('band',),
        example=lambda: (torch.rand(2, 1, 5, 6), torch.rand(2, 3, 6, 6), *torch.tensor([[1], [3], [2], [5]])),
        shapes=shapes,
        body=_band_body(axis),
    )


row_band = register(_band('RowBand', 'B n s p', 2))
"""weights (B, 1, t, s), maps (B, n, s, p), start, stop, low, high (1,) int64 -> (B, n, stop - start, p).

Rows start..stop of the result need rows low..high of the maps.
"""
column_band = register(_band('ColumnBand', 'B n p s', 3))
"""The same along the last axis: maps (B, n, p, s) -> (B, n, p, stop - start)."""


def interpolation(source: Tensor, target: Tensor, columns: Tensor) -> Tensor:
    """Return bilinear weights (..., t, c): the result is their product with the c lines of the source.

    Args:
        source: (..., 1, 1) float32, number of lines of the source, also a fraction; centres at 0.5, 1.5, ...
        target: (t, 1) float32, 0, 1, 2 ...
        columns: (c,) float32, 0, 1, 2 ...; beyond the source the weight is 0.
    """
    length = target.shape[0] * torch.ones_like(source)
    place = (target + 0.5) * (source / length) - 0.5
    place = torch.minimum(place.clamp(min=0), source - 1)
    return (1 - (place - columns).abs()).clamp(min=0)


def composed(size: Tensor, crop: Tensor, target: Tensor, ratio: int) -> Tensor:
    """Return the weights (B, target, size) of a resize by `ratio`, a crop and a second resize of one axis.

    Args:
        size: () int64, lines of the map.
        crop: (B, 1, 1) float32, first lines that the crop leaves: 1 to size * ratio.
        target: () int64, lines of the result.
        ratio: lines after the first resize per line of the map.
    """
    middle = _steps(size * ratio, crop)
    first = interpolation(size.to(crop.dtype).reshape(1, 1), middle[:, None], _steps(size, crop))
    second = interpolation(crop, _steps(target, crop)[:, None], middle)
    return second @ first


def resizing_of(maps: Tensor, img_shape: Tensor, ori_shape: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """Return the weights of rows (B, h, H4) and of columns (B, w, W4): resize to the input, crop, resize.

    The arguments are `resize_and_threshold`'s.
    """
    size = hw(maps)
    padded = size * ratio
    input_hw = padded.to(img_shape)[None]
    crop = torch.where(img_shape > 0, torch.minimum(img_shape, input_hw), input_hw)
    target = torch.where(ori_shape > 0, ori_shape, padded)
    rows = composed(size[0], crop[:, :1, None], target[0], ratio)
    return rows, composed(size[1], crop[:, 1:, None], target[1], ratio)


def resizing(size: Tensor, target: Tensor) -> Tensor:
    """Return the weights (t, size) float32 of one bilinear resize from `size` to `target` lines, () int64."""
    length = size.to(torch.float32).reshape(1, 1)
    return interpolation(length, _steps(target, length)[:, None], _steps(size, length))


def _steps(count: Tensor, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device)


def resize_and_threshold(
    soft: Tensor, img_shape: Tensor, ori_shape: Tensor, ratio: int, mask_thr: float
) -> Tensor:
    """Resize soft masks as mmdet does and compare: (B, n, h, w) bool.

    Args:
        soft: (B, n, H4, W4) float32 probabilities.
        img_shape: (B or 1, 2) float32 height and width before padding, pixels of the network input; 0: the
            whole input.
        ori_shape: (2,) int64 height and width of the results; 0: the input's.
        ratio: pixels of the input per pixel of the soft masks.
        mask_thr: probability that a pixel must exceed.
    """
    size = hw(soft).to(ori_shape)
    padded = size * ratio
    input_hw = padded.to(img_shape)[None]
    # sums, since TensorRT takes a Where of no two axes before a Slice
    crop = torch.minimum(img_shape.clamp(min=0) + (img_shape <= 0).to(input_hw) * input_hw, input_hw)
    target = torch.where(ori_shape > 0, ori_shape, padded)
    rows = composed(size[0], crop[:, :1, None], target[0], ratio)
    columns = composed(size[1], crop[:, 1:, None], target[1], ratio)
    ends = _bands(COLUMN_PIECES, crop[:, 1], target[1], ratio)
    wide = torch.cat([column_band(columns[:, None], soft, *band) for band in ends], dim=3)
    ends = _bands(PIECES, crop[:, 0], target[0], ratio)
    return torch.cat([row_band(rows[:, None], wide, *band) > mask_thr for band in ends], dim=2)


def _bands(count: int, crop: Tensor, target: Tensor, ratio: int) -> Iterator[tuple[Tensor, ...]]:
    edges = target * torch.arange(count + 1, device=target.device) // count
    start, stop = edges[:-1], edges[1:]
    scale = crop[:, None] / target.to(crop.dtype)
    first, last = ((edge.to(crop.dtype) + 0.5) * scale - 0.5 for edge in (start, stop - 1))
    low = torch.floor((torch.floor(first.amin(0)) + 0.5) / ratio - 0.5) - 1
    high = torch.floor((torch.floor(last.amax(0)) + 1.5) / ratio - 0.5) + 3
    low, high = low.clamp(min=0).to(torch.int64), high.clamp(min=1).to(torch.int64)
    yield from zip(*(ends.split(1) for ends in (start, stop, low, high)), strict=True)
