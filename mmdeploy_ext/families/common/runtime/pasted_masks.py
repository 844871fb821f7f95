"""Masks in the frame of boxes, pasted into images in numpy.

Source: mmdet 2.28.2 `mask_heads/fcn_mask_head.py` (`get_seg_masks`, `_do_paste_mask`), and PyTorch's
`grid_sample` (bilinear, zeros outside, `align_corners=False`), all in float32.
Glossary: B batch, n results of the fullest image, or a constant of the file, m side of a mask in the frame of
its box, h, w size of the largest image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.common.runtime.padded_results import check_caps, check_form
from mmdeploy_ext.runtime.detections import Instances

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.spec.metadata import Metadata


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[Instances]:
    """Return the instances of each image of a batch, of a graph of the form 'full'.

    Args:
        metadata: metadata of the file; `mask_thr` of `postprocess` is the inclusive threshold (`paste`).
        outputs: `dets` (B, n, 5) x1 y1 x2 y2 score in pixels of `ori_shape`, `labels` (B, n) int64, -1 for
            padding, and `masks` (B, n, m, m) float32, 0..1 in the frame of the box, or with `--paste-masks`
            (B, n, h, w) bool; maybe `mask_scores` (B, n).
        feeds: `ori_shape` (2,) or (B, 2), h, w of the masks to return, and maybe `scale_factor` (B or 1, 4),
            input / original, by which boxes were divided.
    """
    check_form(metadata)
    batch = len(outputs['labels'])
    sizes = np.broadcast_to(np.asarray(feeds['ori_shape']).reshape(-1, 2), (batch, 2))
    scales = np.broadcast_to(np.asarray(feeds.get('scale_factor', np.ones(4)), np.float32), (batch, 4))
    instances = []
    for image in range(batch):
        present = outputs['labels'][image] >= 0
        dets, masks = outputs['dets'][image][present], outputs['masks'][image][present]
        height, width = map(int, sizes[image])
        if masks.dtype == bool:
            masks = masks[:, :height, :width]
        else:
            boxes = dets[:, :4] * scales[image] / scales[image]  # as mmdet does, which rounds
            masks = paste(masks, boxes, height, width, metadata.postprocess.mask_thr)
        labels, mask_scores = outputs['labels'][image][present], None
        if 'mask_scores' in outputs:
            mask_scores = outputs['mask_scores'][image][present]
        instances.append(Instances(masks, dets[:, 4], labels, dets[:, :4], mask_scores))
    check_caps(metadata, outputs, instances)
    return instances


def paste(
    masks: np.ndarray, bboxes_xyxy: np.ndarray, height: int, width: int, threshold: float
) -> np.ndarray:
    """Return masks (n, height, width) bool; `masks` (n, m, m) of 0..1 are in boxes (n, 4), pixels.

    With a `threshold` below 0, masks are uint8: 255 times the probability, rounded down.
    """
    pasted = np.zeros((len(masks), height, width), bool if threshold >= 0 else np.uint8)
    for image, mask, (x1, y1, x2, y2) in zip(pasted, masks, bboxes_xyxy.astype(np.float32), strict=True):
        rows, columns = _span(y1, y2, height), _span(x1, x2, width)
        row_taps = _taps(rows, y1, y2, mask.shape[0])
        column_taps = _taps(columns, x1, x2, mask.shape[1])
        padded = np.pad(mask, 1)
        values = np.zeros((len(rows), len(columns)), np.float32)
        for row, row_weight in row_taps:
            for column, column_weight in column_taps:
                values += padded[row[:, None], column[None]] * (column_weight[None] * row_weight[:, None])
        pixels = values >= threshold if threshold >= 0 else values * np.float32(255)
        image[rows[:, None], columns[None]] = pixels
    return pasted


def _span(low: np.float32, high: np.float32, size: int) -> np.ndarray:
    ends = np.clip(np.nan_to_num([np.floor(low) - 1, np.ceil(high) + 1]), 0, size)
    return np.arange(*ends.astype(int))


def _taps(
    pixels: np.ndarray, low: np.float32, high: np.float32, size: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    half, unit, double = np.float32([0.5, 1, 2])
    with np.errstate(divide='ignore', invalid='ignore'):
        place = (pixels.astype(np.float32) + half - low) / (high - low) * double - unit
    place = np.where(np.isinf(place), np.float32(0), place)
    place = ((place + unit) * np.float32(size) - unit) / double
    first = np.floor(place)
    weight = place - first
    index = np.clip(np.nan_to_num(first), -2, size + 1).astype(np.int64)
    return tuple(
        (np.clip(index + step + 1, 0, size + 1), np.nan_to_num(tap_weight))
        for step, tap_weight in ((0, unit - weight), (1, weight))
    )
