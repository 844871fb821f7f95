"""The plug-ins of BEVFormer's deployments with TensorRT, in numpy.

Source: DerryHub/BEVFormer_tensorrt 303d314, TensorRT/plugin/{rotate,multi_scale_deformable_attn} (float32
kernels; behaviour in own words), and the copies of autoware_universe, autoware_tensorrt_bevformer c1fe1b8.

Glossary: B batch, S values of all maps, M heads, D channels of a head, L maps, Q queries, P points per map, Z
reference points of a query.
"""

import numpy as np

from mmdeploy_ext.base.errors import InferenceError

ROTATE, ATTENTION = 'RotateTRT', 'MultiScaleDeformableAttnTRT'
"""Names of the plug-ins, version 1, without a name space."""
NEAREST = 1
"""RotateTRT's `interpolation` of BEVFormer; 0 is bilinear."""


def rotate(
    image: np.ndarray, angle: np.ndarray, center: np.ndarray, interpolation: int = NEAREST
) -> np.ndarray:
    """Return a picture (C, H, W) float32 turned about a point; 0 without a source.

    Args:
        image: (C, H, W) float32.
        angle: () degrees, counter-clockwise with row 0 on top, as in torchvision.
        center: (2,) x, y in pixels; (0.5, 0.5) is the middle of the first one.
        interpolation: `NEAREST`, else bilinear. Between two pixels `NEAREST` takes the one further from 0,
            torchvision the even one.
    """
    height, width = image.shape[1:]
    radians = np.float32(-float(angle) * np.pi / 180)
    cosine, sine = np.cos(radians), np.sin(radians)
    half = np.float32([width, height]) * np.float32(0.5)
    x0, y0 = center.astype(np.float32) - half
    x = np.arange(width, dtype=np.float32) - half[0] + np.float32(0.5)
    y = (np.arange(height, dtype=np.float32) - half[1] + np.float32(0.5))[:, None]
    shares = (
        (cosine * x + sine * y + (-x0 * cosine - y0 * sine + x0)) / half[0],
        (-sine * x + cosine * y + (x0 * sine - y0 * cosine + y0)) / half[1],
    )
    places = [((share + 1) * size - 1) / 2 for share, size in zip(shares, (width, height), strict=True)]
    if interpolation != NEAREST:
        return bilinear(image.transpose(1, 2, 0), np.stack(places, -1)).transpose(2, 0, 1)
    cells, is_inside = [], True
    for place, size in zip(places, (width, height), strict=True):
        cell = np.trunc(place + np.copysign(np.float32(0.5), place)).astype(np.int64)
        is_inside = is_inside & (cell >= 0) & (cell < size)
        cells.append(cell.clip(0, size - 1))
    return image[:, cells[1], cells[0]] * is_inside


def attend(
    value: np.ndarray, shapes: np.ndarray, references: np.ndarray, offsets: np.ndarray, logits: np.ndarray
) -> np.ndarray:
    """Return the weighted samples of all maps, summed (B, Q, M, D) float32; places outside of a map are 0.

    Args:
        value: (B, S, M, D) float32, map by map, row by row.
        shapes: (L, 2) int64, rows and columns. Autoware's float kernel gets a null pointer for int32;
            TensorRT before version 10 narrows int64 itself.
        references: (B, Q, 1, 2 Z), x and y in shares of a map.
        offsets: (B, Q, M, L P 2), x and y in pixels; point p is around reference p mod Z.
        logits: (B, Q, M, L P), before the softmax over the points of all maps.
    """
    if shapes.dtype != np.int64:
        raise InferenceError(
            f'{ATTENTION}: spatial_shapes are {shapes.dtype}, but the plug-in needs int64; export it again'
        )
    batch, queries, heads, _ = logits.shape
    anchors = references.shape[-1] // 2
    offsets = offsets.reshape(batch, queries, heads, len(shapes), -1, anchors, 2)
    places = references.reshape(batch, queries, 1, 1, anchors, 2)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights = (weights / weights.sum(-1, keepdims=True)).reshape(batch, queries, heads, len(shapes), -1)
    result = np.zeros((batch, queries, *value.shape[2:]), np.float32)
    begin = 0
    for level, (height, width) in enumerate(shapes.tolist()):
        values = value[:, begin : begin + height * width]
        begin += height * width
        size = np.float32([width, height])
        pixels = (places + offsets[:, :, :, level] / size) * size - np.float32(0.5)
        pixels = pixels.reshape(batch, queries, heads, -1, 2)
        for row in range(batch):
            for head in range(heads):
                maps = values[row, :, head].reshape(height, width, -1)
                sampled = bilinear(maps, pixels[row, :, head])
                result[row, :, head] += (weights[row, :, head, level, :, None] * sampled).sum(1)
    return result


def bilinear(values: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return values (H, W, C) at places (a, b, 2), x and y from the middle of the first pixel; 0 outside."""
    height, width = values.shape[:2]
    low = np.floor(pixels)
    share = pixels - low
    total = np.zeros((*pixels.shape[:2], values.shape[2]), np.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            weight = np.where(dx, share[..., 0], 1 - share[..., 0])
            weight = weight * np.where(dy, share[..., 1], 1 - share[..., 1]) * is_inside
            column, row = (np.where(is_inside, axis, 0).astype(np.int64) for axis in (x, y))
            total += values[row, column] * weight[..., None]
    return total


KERNELS = {ROTATE: rotate, ATTENTION: attend}
"""Plug-in -> function of its node's inputs and attributes."""
