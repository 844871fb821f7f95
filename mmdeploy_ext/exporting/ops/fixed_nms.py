"""Non-maximum suppression of a constant number of boxes, in standard operators that every engine has.

For engines without NonMaxSuppression (TensorRT-RTX). B batch, K boxes; some tensors (B, K, K) are in memory.
"""

from __future__ import annotations

import torch

from mmdeploy_ext.exporting.ops.greedy_keep import greedy_keep_batch


def pairwise_iou(bboxes_xyxy: torch.Tensor) -> torch.Tensor:
    """Return (B, K, K) the intersection over union of all pairs of (B, K, 4), rounded as mmcv rounds it.

    Two boxes without an area give NaN, which exceeds no threshold, as in mmcv.
    """
    left, top, right, bottom = bboxes_xyxy.unbind(dim=2)
    areas = (right - left) * (bottom - top)
    width = _shared(left, right)
    overlap = width * _shared(top, bottom)
    return overlap / (areas[:, :, None] + areas[:, None, :] - overlap)


def _shared(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return (B, K, K) how much of an axis two intervals share."""
    start = torch.maximum(low[:, :, None], low[:, None, :])
    return (torch.minimum(high[:, :, None], high[:, None, :]) - start).clamp(min=0)


def nms_of_sorted(bboxes_xyxy: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Return which boxes greedy suppression keeps.

    Args:
        bboxes_xyxy: (B, K, 4) float32, in the order of their scores, the best first; boxes that may not
            suppress each other must not overlap (`class_offsets`).
        iou_threshold: suppress above this.

    Returns:
        (B, K) bool.
    """
    ranks = torch.arange(bboxes_xyxy.shape[1], device=bboxes_xyxy.device)
    before = ranks[None, :] < ranks[:, None]
    return greedy_keep_batch((pairwise_iou(bboxes_xyxy) > iou_threshold) & before)
