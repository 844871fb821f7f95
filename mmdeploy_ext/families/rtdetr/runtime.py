"""RT-DETR in numpy: post-processing of the form 'raw', equal to 'full'.

Source: lyuwenyu/RT-DETR 068dfde, src/zoo/rtdetr/rtdetr_postprocessor.py.
Glossary: B batch, C classes, Q queries, n detections, H, W network input in pixels, multiples of 32, h, w
original image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import ShapeError
from mmdeploy_ext.engines.base import FEED_CHECKS
from mmdeploy_ext.runtime.detections import Detections, results_from_padded, top_rows
from mmdeploy_ext.runtime.geometry import sigmoid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.spec.metadata import Metadata

RUNNERS = dict.fromkeys(('full', 'raw'), 'rtdetr')

SIZES = 'orig_target_sizes'
STRIDES = (8, 16, 32)
"""Strides of the three maps of tokens, pixels."""


def target_sizes(ori_shapes: Sequence[Sequence[int]]) -> np.ndarray:
    """Return `orig_target_sizes` (B, 2) int64, width and height, of sizes (h, w)."""
    return np.asarray([(width, height) for height, width in ori_shapes], np.int64)


def check_target_sizes(sizes: np.ndarray, ori_shapes: Sequence[Sequence[int]]) -> None:
    """Refuse sizes (B, 2) w, h that differ from the images' (h, w)."""
    expected = target_sizes(ori_shapes)
    if sizes.shape != expected.shape:
        raise ShapeError(f'{SIZES}: got {sizes.shape}, expected {expected.shape}: width, height')
    if (sizes <= 0).any():
        raise ShapeError(f'{SIZES}: got {sizes.tolist()}, expected positive width, height')
    if not np.array_equal(sizes, expected):
        turned = np.array_equal(sizes[:, ::-1], expected)
        raise ShapeError(
            f'{SIZES}: got {sizes.tolist()}, expected {expected.tolist()}: '
            f'{"width comes first, then height" if turned else "width, height of the original images"}'
        )


def check_tokens(shape: Sequence[int], queries: int) -> None:
    """Refuse an input (..., H, W) with fewer tokens than queries."""
    height, width = shape[-2:]
    tokens = count_tokens(height, width)
    if tokens < queries:
        side = STRIDES[-1]
        while count_tokens(side, side) < queries:
            side += STRIDES[-1]
        raise ShapeError(
            f'images: an input of {height}x{width} gives {tokens} tokens for {queries} queries; the smallest '
            f'square that gives enough is {side}x{side}'
        )


def count_tokens(height: int, width: int) -> int:
    return sum((height // stride) * (width // stride) for stride in STRIDES)


def check_feeds(metadata: Metadata, feeds: Arrays) -> None:
    images = metadata.spec.tensor('images')
    sides = [feeds['images'].shape[place] for place in images.sides]
    check_tokens(sides, metadata.postprocess.num_queries)


FEED_CHECKS['rtdetr'] = check_feeds  # engines call it before they run a file of this family


def postprocess_image(
    logits: np.ndarray, boxes: np.ndarray, size_wh: Sequence[int], max_per_img: int
) -> Detections:
    """Return the `max_per_img` best (query, class) pairs of one image, as the `full` graph.

    `logits` are (Q, C), before the sigmoid, `boxes` (Q, 4) cxcywh in 0..1; returned boxes are pixels of
    `size_wh`, not clipped. Equal scores keep the order of query, then class.
    """
    scores = sigmoid(logits).reshape(-1)
    order = top_rows(scores, max_per_img)
    query, labels = np.divmod(order, logits.shape[1])
    centre, half = boxes[:, :2], np.float32(0.5) * boxes[:, 2:]
    pixels = np.concatenate([centre - half, centre + half], -1) * np.tile(np.asarray(size_wh, np.float32), 2)
    return Detections(pixels[query].astype(np.float32), scores[order], labels.astype(np.int64))


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Detections]:
    """Return the detections of each image of a batch, best first.

    Args:
        metadata: metadata of the file: `form` and `postprocess`.
        outputs: 'full': `labels` (B, n) int64, `boxes` (B, n, 4) x1 y1 x2 y2 in pixels of
            `orig_target_sizes`, `scores` (B, n); 'raw': `logits` (B, Q, C) and `boxes` (B, Q, 4) cxcywh in
            0..1.
        feeds: `orig_target_sizes` (B, 2), width and height, and optionally `ori_shape` (2,), h, w of all
            images, which must agree.
    """
    sizes, shape = feeds[SIZES], feeds.get('ori_shape')
    shapes = sizes.reshape(-1, 2)[:, ::-1] if shape is None else [shape] * len(sizes)
    check_target_sizes(sizes, shapes)
    if metadata.form == 'full':
        return results_from_padded(outputs)
    facts = metadata.postprocess
    for name, columns in (('logits', facts.num_classes), ('boxes', 4)):
        got, expected = outputs[name].shape[1:], (facts.num_queries, columns)
        if got != expected:
            raise ShapeError(f'{name}: got {got}, expected {expected}')
    return [
        postprocess_image(*image, facts.max_per_img)
        for image in zip(outputs['logits'], outputs['boxes'], sizes, strict=True)
    ]
