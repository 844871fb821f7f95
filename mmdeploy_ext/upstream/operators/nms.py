"""Non-maximum suppression on padded batches: mmcv's in PyTorch, the standard NonMaxSuppression in ONNX.

Glossary: B batch, N boxes, G groups of boxes, K boxes (constant and few: tensors (B, K, K) are in memory), n
selected boxes.
"""
# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmdeploy_ext.upstream.operators.operator import Operator, register

NMS_SCORE_THRESHOLD = -0.5
"""Between -1 (no candidate) and true scores in 0..1."""
BELOW_ALL = -1e30
"""Below every coordinate, and finite when multiplied by a label."""
AT_ONCE = 10_000
"""Boxes in mmcv's first call, which compares all pairs; the best go first."""


def _keep_best(boxes: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> Tensor:
    from mmcv.ops import nms

    count, order = len(scores), torch.arange(len(scores), device=scores.device)
    if count > AT_ONCE:
        order = scores.argsort(descending=True, stable=True)
    compared = min(AT_ONCE, count)
    while True:
        rows = order[:compared]
        keep = rows[nms(boxes[rows], scores[rows], iou_threshold)[1]][:max_output]
        if len(keep) >= max_output or compared == count:
            return keep
        compared = min(4 * compared, count)


def _eager(bboxes_xyxy: Tensor, scores: Tensor, iou_threshold: Tensor, max_output: Tensor) -> Tensor:
    selected = []
    for image, (image_boxes, image_scores) in enumerate(zip(bboxes_xyxy, scores.amax(1), strict=True)):
        candidates = torch.nonzero(image_scores > NMS_SCORE_THRESHOLD).squeeze(1)
        if candidates.numel() == 0:
            continue
        boxes, best = image_boxes[candidates], image_scores[candidates]
        keep = candidates[_keep_best(boxes, best, float(iou_threshold), int(max_output))]
        selected.append(torch.stack([torch.full_like(keep, image), torch.zeros_like(keep), keep], dim=1))
    return torch.cat(selected) if selected else bboxes_xyxy.new_zeros((0, 3), dtype=torch.int64)


def _batched_nms(op: Any) -> Callable[..., Any]:
    least = [NMS_SCORE_THRESHOLD]

    def body(bboxes_xyxy, scores, iou_threshold, max_output):
        selected = op.NonMaxSuppression(bboxes_xyxy, scores, max_output, iou_threshold, least)
        return selected

    return body


BATCHED_NMS = register(
    Operator(
        'BatchedNms',
        _eager,
        inputs=dict(bboxes_xyxy='B N 4', scores='B G N', iou_threshold='1', max_output='1'),
        outputs=('selected',),
        example=lambda: (
            torch.tensor([[[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]]]),
            torch.tensor([[[0.9, 0.8, 0.7]]]),
            torch.tensor([0.5]),
            torch.tensor([100]),
        ),
        shapes=lambda bboxes_xyxy, *_: bboxes_xyxy.new_empty(
            (torch.library.get_ctx().new_dynamic_size(), 3), dtype=torch.int64
        ),
        body=_batched_nms,
    )
)
"""IoU does not care which axis is called x, so `xyxy` needs no reordering."""


def batched_nms(bboxes_xyxy: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> Tensor:
    """Return the boxes that greedy NMS of each image keeps: (n, 3) int64 image, group and index.

    Args:
        bboxes_xyxy: (B, N, 4) float32, shifted apart by `class_offsets`.
        scores: (B, G, N) float32; at most `NMS_SCORE_THRESHOLD` for no candidate, or a box of another group.
        iou_threshold: a larger overlap suppresses.
        max_output: most kept boxes per image; with several groups at least N.
    """
    return BATCHED_NMS(bboxes_xyxy, scores, torch.tensor([iou_threshold]), torch.tensor([max_output]))


def batched_keep(
    bboxes_xyxy: Tensor, scores: Tensor, grouped: Tensor, iou_threshold: float, max_output: int
) -> Tensor:
    """Return (B, N) bool, True for the boxes that `batched_nms` keeps by the scores `grouped` (B, C, N)."""
    selected = batched_nms(bboxes_xyxy, grouped, iou_threshold, max_output)
    rows = selected[:, 0] * scores.shape[1] + selected[:, 2]
    keep = torch.zeros_like(scores).flatten()
    keep = keep.scatter(0, rows, torch.ones_like(rows, dtype=scores.dtype))
    return keep.reshape(scores.shape) > 0


def class_offsets(bboxes_xyxy: Tensor, labels: Tensor, candidates: Tensor) -> Tensor:
    """Shift the boxes of each class apart, so that one NMS suppresses within classes only.

    Args:
        bboxes_xyxy: (B, N, 4) pixels.
        labels: (B, N) int64, 0 or more; boxes of label 0 stay.
        candidates: (B, N) bool, the boxes that count for the largest coordinate.
    """
    visible = torch.where(candidates[..., None], bboxes_xyxy, torch.full_like(bboxes_xyxy, BELOW_ALL))
    largest = visible.flatten(1).max(dim=1, keepdim=True)[0]
    return bboxes_xyxy + (labels.to(bboxes_xyxy.dtype) * (largest + 1))[..., None]


def pairwise_iou(bboxes_xyxy: Tensor) -> Tensor:
    left, top, right, bottom = bboxes_xyxy.unbind(dim=2)
    areas = (right - left) * (bottom - top)
    width = _shared(left, right)
    overlap = width * _shared(top, bottom)
    return overlap / (areas[:, :, None] + areas[:, None, :] - overlap)


def _shared(low: Tensor, high: Tensor) -> Tensor:
    start = torch.maximum(low[:, :, None], low[:, None, :])
    return (torch.minimum(high[:, :, None], high[:, None, :]) - start).clamp(min=0)


def nms_of_sorted(bboxes_xyxy: Tensor, iou_threshold: float) -> Tensor:
    """Return (B, K) bool, True for the boxes that greedy suppression keeps in each image.

    `bboxes_xyxy` (B, K, 4) float32, K at least 1, by descending score, shifted apart by `class_offsets`.
    """
    ranks = torch.arange(bboxes_xyxy.shape[1], device=bboxes_xyxy.device)
    before = ranks[None, :] < ranks[:, None]
    return greedy_keep_batch((pairwise_iou(bboxes_xyxy) > iou_threshold) & before)


def _greedy_keep_batch(suppressed_by: torch.Tensor) -> torch.Tensor:
    keep = 1 - suppressed_by.amax(dim=2)[:, None]
    while True:
        next_keep = 1 - (suppressed_by * keep).amax(dim=2)[:, None]
        if torch.equal(next_keep, keep):
            return keep
        keep = next_keep


def _greedy_keep_batch_body(op: Any) -> Callable[..., Any]:
    from onnxscript import graph

    def body(suppressed_by):
        first = 1.0 - op.Transpose(op.GlobalMaxPool(suppressed_by), perm=[0, 2, 1])

        @graph()
        def turn(number, go, kept):
            left = 1.0 - op.Transpose(op.GlobalMaxPool(suppressed_by * kept), perm=[0, 2, 1])
            largest = op.ReduceMax(op.Abs(left - kept), keepdims=0)
            return largest > 0.0, left

        keep = op.Loop(None, True, first, body=turn)
        return keep

    return body


GREEDY_KEEP_BATCH = register(
    Operator(
        'GreedyKeepBatch',
        _greedy_keep_batch,
        inputs=dict(suppressed_by='B K K'),
        outputs=('keep',),
        example=lambda: (torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]]),),
        shapes=lambda suppressed_by: torch.empty_like(suppressed_by[:, :1]),
        body=_greedy_keep_batch_body,
    )
)
"""(B, K, K) float32, 0 or 1, see `greedy_keep_batch` -> (B, 1, K) float32, 1 for a kept row."""


def greedy_keep_batch(suppressed_by: torch.Tensor) -> torch.Tensor:
    """Return (B, K) bool: the boxes that survive when each survivor removes its targets in order.

    `suppressed_by` (B, K, K) bool: [b, j, i] is True if box i suppresses box j; only for i < j. TensorRT
    knows the operators.
    """
    return GREEDY_KEEP_BATCH(suppressed_by.to(torch.float32))[:, 0] > 0
