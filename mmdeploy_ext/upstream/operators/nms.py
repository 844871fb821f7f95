"""Non-maximum suppression on padded batches: mmcv's in PyTorch, the standard NonMaxSuppression in ONNX.

Glossary: B batch, N boxes, G groups of boxes, K boxes (constant and few: tensors (B, K, K) are in memory), n
selected boxes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmdeploy_ext.graphs.script import Body
from mmdeploy_ext.upstream.operators.operator import Operator, Plugin, register

# Soft non-maximum suppression: scores of boxes that overlap a chosen one decay; a Loop in ONNX.
#
# Source: mmcv 1.7.2 `ops/csrc/pytorch/cpu/nms.cpp` (Bodla et al., ICCV 2017).


# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies


NO_CANDIDATE = -1.0
"""Score of a row that is no candidate, was chosen, or fell below `min_score`."""
METHODS = 'naive', 'linear', 'gaussian'


def _body(method: str) -> Body:
    is_naive, is_linear = method == 'naive', method == 'linear'

    def soft_nms(op: Any) -> Callable[..., Any]:
        from onnxscript import graph

        def body(bboxes_xyxy, scores, most: int, iou_threshold: float, sigma: float, min_score: float):
            threshold = op.Constant(value_float=iou_threshold)
            spread = op.Constant(value_float=sigma)
            least = op.Constant(value_float=min_score)
            left, top, right, bottom = op.Split(bboxes_xyxy, [1, 1, 1, 1], axis=2)
            x1 = op.Squeeze(left, [2])
            y1 = op.Squeeze(top, [2])
            x2 = op.Squeeze(right, [2])
            y2 = op.Squeeze(bottom, [2])
            area = (x2 - x1) * (y2 - y1)

            @graph()
            def turn(number, again, s):
                score, row = op.TopK(s, [1])
                width = op.Min(op.GatherElements(x2, row, axis=1), x2) - op.Max(
                    op.GatherElements(x1, row, axis=1), x1
                )
                height = op.Min(op.GatherElements(y2, row, axis=1), y2) - op.Max(
                    op.GatherElements(y1, row, axis=1), y1
                )
                shared = op.Max(width, 0.0) * op.Max(height, 0.0)
                iou = shared / (op.GatherElements(area, row, axis=1) + area - shared)
                if is_naive:
                    weight = op.Where(iou >= threshold, 0.0, 1.0)
                elif is_linear:
                    weight = op.Where(iou >= threshold, 1.0 - iou, 1.0)
                else:
                    weight = op.Exp(op.Neg(iou * iou / spread))
                lower = s * weight
                stays = op.And(lower >= least, s > -1.0)
                left_over = op.Where(stays, lower, -1.0)
                decayed = op.ScatterElements(left_over, row, score * 0.0 + -1.0, axis=1)
                return op.Identity(again), decayed, op.Squeeze(row, [1]), op.Squeeze(score, [1])

            _end, all_rows, all_best = op.Loop(op.Constant(value_int=most), True, scores, body=turn)
            rows = op.Transpose(all_rows, perm=[1, 0])
            best = op.Transpose(all_best, perm=[1, 0])
            return rows, best

        return body

    return soft_nms


def _operator(method: str) -> Operator:
    def eager(
        bboxes_xyxy: Tensor, scores: Tensor, most: int, iou_threshold: float, sigma: float, min_score: float
    ) -> tuple[Tensor, Tensor]:
        from mmcv.ops import soft_nms

        rows = scores.new_zeros((scores.shape[0], most), dtype=torch.int64)
        best = scores.new_full((scores.shape[0], most), NO_CANDIDATE)
        for image, (boxes, values) in enumerate(zip(bboxes_xyxy, scores, strict=True)):
            candidates = torch.nonzero(values > NO_CANDIDATE).squeeze(1)
            if candidates.numel():
                dets, order = soft_nms(
                    boxes[candidates], values[candidates], iou_threshold, sigma, min_score, method=method
                )
                count = min(len(order), most)
                rows[image, :count], best[image, :count] = candidates[order[:count]], dets[:count, 4]
        return rows, best

    name = f'SoftNms{method.title()}'
    return Operator(
        name,
        eager,
        inputs=dict(bboxes_xyxy='B N 4', scores='B N'),
        outputs=('rows', 'best'),
        example=lambda: (torch.tensor([[[0.0, 0, 2, 2], [0, 0, 2, 1.9]]]), torch.tensor([[0.9, 0.8]])),
        shapes=lambda bboxes_xyxy, scores, most, *_: (
            scores.new_empty((scores.shape[0], most), dtype=torch.int64),
            scores.new_empty((scores.shape[0], most)),
        ),
        body=_body(method),
    )


SOFT_NMS = {method: register(_operator(method)) for method in METHODS}
"""Method of mmcv -> operator: (boxes (B, N, 4) xyxy, scores (B, N), settings) -> rows, scores.

Settings: `most` results per image, and mmcv's `iou_threshold`, `sigma` and `min_score`. Returns the chosen
rows (B, most) int64 and their decayed scores (B, most), descending, `NO_CANDIDATE` for padding.
"""


# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies


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


# Suppression as TensorRT's plug-in EfficientNMS_TRT, of boxes that have one class each.
#
# Source: NVIDIA/TensorRT, plugin/efficientNMSPlugin (behaviour in own words).
#
# Glossary: B batch, N boxes, C classes, K most results of an image.


NAME = 'EfficientNMS_TRT'
SCORE_THRESHOLD = 0.007
"""Lowest threshold below which the plug-in counts boxes without a score, too."""
SCALE = 2.0**20
"""Factor of scores in front of the plug-in: exact, and scores down to 7e-9 are above the threshold."""


def _suppress(
    bboxes: Tensor, scores: Tensor, iou_threshold: float, max_output_boxes: int, class_agnostic: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores, labels = scores.max(dim=2)
    scores, rows = scores.sort(dim=1, descending=True)
    bboxes, labels = bboxes.gather(1, rows[..., None].expand(-1, -1, 4)), labels.gather(1, rows)
    ranks = torch.arange(bboxes.shape[1], device=bboxes.device)
    suppressed = (pairwise_iou(bboxes) >= iou_threshold) & (ranks[None, :] < ranks[:, None])
    if not class_agnostic:
        suppressed = suppressed & (labels[:, :, None] == labels[:, None, :])
    kept = greedy_keep_batch(suppressed) & (scores >= SCORE_THRESHOLD)
    padding = torch.zeros(bboxes.shape[0], max_output_boxes, 4, device=bboxes.device)
    scores = torch.cat([scores * kept, padding[..., 0]], dim=1)
    scores, rows = scores.topk(max_output_boxes, dim=1)
    present = scores > 0
    bboxes = torch.cat([bboxes, padding], dim=1).gather(1, rows[..., None].expand(-1, -1, 4))
    labels = torch.cat([labels, padding[..., 0].to(labels.dtype)], dim=1).gather(1, rows)
    count = present.sum(dim=1, keepdim=True)
    return count.to(torch.int32), bboxes * present[..., None], scores, (labels * present).to(torch.int32)


EFFICIENT_NMS = register(
    Operator(
        'EfficientNms',
        _suppress,
        inputs=dict(bboxes='B N 4', scores='B N C'),
        outputs=('num_detections', 'detection_boxes', 'detection_scores', 'detection_classes'),
        example=lambda: (torch.rand(2, 5, 4).cumsum(2), torch.rand(2, 5, 3)),
        traceable=_suppress,
        plugin=Plugin(
            NAME,
            attributes={name: name for name in ('iou_threshold', 'max_output_boxes', 'class_agnostic')},
            constants=dict(
                score_threshold=SCORE_THRESHOLD, background_class=-1, score_activation=0, box_coding=0
            ),
        ),
    )
)


def efficient_nms(
    bboxes_xyxy: Tensor, scores: Tensor, iou_threshold: float, most: int, class_agnostic: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return counts (B, 1), boxes (B, K, 4), scores (B, K), classes (B, K), zero behind the count.

    Counts and classes are int32.

    Args:
        bboxes_xyxy: (B, N, 4).
        scores: (B, N, C), above 0 for the class of a box alone.
        iou_threshold: this overlap or a larger one suppresses.
        most: K.
        class_agnostic: boxes suppress boxes of other classes.
    """
    count, bboxes, scores, labels = EFFICIENT_NMS(
        bboxes_xyxy, scores * SCALE, iou_threshold, most, class_agnostic
    )
    return count, bboxes, scores / SCALE, labels
