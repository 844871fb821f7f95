"""Compiled loops of box suppression: mmcv's CPU kernels, operation by operation, in float32.

Source: mmcv 1.7.2 `ops/csrc/pytorch/cpu/nms.cpp`. n boxes (4,) xyxy; `offset` is 0, or 1 for sides that count
both ends.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - numba infers the types; the docstrings give them

import math

import numpy as np

from mmdeploy_ext.base.compiled import njit

ZERO, UNIT = np.float32(0), np.float32(1)
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
