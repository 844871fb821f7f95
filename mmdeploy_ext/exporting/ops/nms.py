"""Non-maximum suppression on padded batches: mmcv's in PyTorch, the standard NonMaxSuppression in ONNX.

For engines without NonMaxSuppression (TensorRT-RTX) that of a constant number of boxes, in standard operators
that every engine has.

Glossary: B batch, N boxes, G groups of boxes, K boxes where their number is constant: some tensors (B, K, K)
are in memory.
"""

import torch
from torch import Tensor

from mmdeploy_ext.exporting.ops.exporters import register
from mmdeploy_ext.exporting.ops.greedy_keep import greedy_keep_batch
from mmdeploy_ext.exporting.ops.operator import Operator

NMS_SCORE_THRESHOLD = -0.5
"""Rows that are no candidate carry the score -1; a true score lies in 0..1."""
BELOW_ALL = -1e30
"""Below every coordinate; stays finite when it is multiplied by a label."""


AT_ONCE = 10_000
"""Boxes that mmcv's kernel is given, of more than that first the best ones: it compares each with each."""


def _kept(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Return the rows that mmcv's NMS keeps, best first, `most` at most.

    What is behind the last row that is kept changes nothing. Of LVIS's 1,203 classes a million boxes go in.
    """
    from mmcv.ops import nms

    count, order = len(scores), torch.arange(len(scores), device=scores.device)
    if count > AT_ONCE:
        order = scores.argsort(descending=True, stable=True)
    looked = min(AT_ONCE, count)
    while True:
        rows = order[:looked]
        keep = rows[nms(boxes[rows], scores[rows], iou_threshold)[1]][:most]
        if len(keep) >= most or looked == count:
            return keep
        looked = min(4 * looked, count)


def _eager(bboxes_xyxy: Tensor, scores: Tensor, iou_threshold: Tensor, max_output: Tensor) -> Tensor:
    selected = []
    for image, (image_boxes, image_scores) in enumerate(zip(bboxes_xyxy, scores.amax(1), strict=True)):
        candidates = torch.nonzero(image_scores > NMS_SCORE_THRESHOLD).squeeze(1)
        if candidates.numel() == 0:
            continue
        given = image_boxes[candidates], image_scores[candidates], float(iou_threshold), int(max_output)
        keep = candidates[_kept(*given)]
        selected.append(torch.stack([torch.full_like(keep, image), torch.zeros_like(keep), keep], dim=1))
    return torch.cat(selected) if selected else bboxes_xyxy.new_zeros((0, 3), dtype=torch.int64)


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
        body=f"""
        BatchedNms (bboxes_xyxy, scores, iou_threshold, max_output) => (selected) {{
            least = Constant <value = float[1] {{{NMS_SCORE_THRESHOLD}}}> ()
            selected = NonMaxSuppression (bboxes_xyxy, scores, max_output, iou_threshold, least)
        }}""",
    )
)
"""IoU does not care which axis is called x, so `xyxy` needs no reordering. The settings are tensors, because
opset 11 makes no constant of an attribute."""


def batched_nms(bboxes_xyxy: Tensor, scores: Tensor, iou_threshold: float, max_output: int) -> Tensor:
    """Return (n, 3) int64 rows of image, group (0 in PyTorch) and box that greedy NMS of each image keeps.

    Boxes that may not suppress each other must not overlap.

    Args:
        bboxes_xyxy: (B, N, 4) float32, see `class_offsets`.
        scores: (B, G, N) float32 of each group of boxes; `NMS_SCORE_THRESHOLD` or less marks a row that is no
            candidate, or of another group.
        iou_threshold: suppress above this.
        max_output: keep at most this many per image; with several groups not below `N`.
    """
    return BATCHED_NMS(bboxes_xyxy, scores, torch.tensor([iou_threshold]), torch.tensor([max_output]))


def class_offsets(bboxes_xyxy: Tensor, labels: Tensor, candidates: Tensor) -> Tensor:
    """Shift the boxes (B, N, 4) of each class apart, so that one NMS suppresses within classes only.

    Of labels (B, N) int64 and candidates (B, N) bool; only these count for the largest coordinate. Rounded
    exactly as mmcv's `batched_nms` rounds.
    """
    visible = torch.where(candidates[..., None], bboxes_xyxy, torch.full_like(bboxes_xyxy, BELOW_ALL))
    largest = visible.flatten(1).max(dim=1, keepdim=True)[0]
    return bboxes_xyxy + (labels.to(bboxes_xyxy.dtype) * (largest + 1))[..., None]


def pairwise_iou(bboxes_xyxy: Tensor) -> Tensor:
    """Return (B, K, K) the intersection over union of all pairs of (B, K, 4), rounded as mmcv rounds it.

    Two boxes without an area give NaN, which exceeds no threshold, as in mmcv.
    """
    left, top, right, bottom = bboxes_xyxy.unbind(dim=2)
    areas = (right - left) * (bottom - top)
    width = _shared(left, right)
    overlap = width * _shared(top, bottom)
    return overlap / (areas[:, :, None] + areas[:, None, :] - overlap)


def _shared(low: Tensor, high: Tensor) -> Tensor:
    """Return (B, K, K) how much of an axis two intervals share."""
    start = torch.maximum(low[:, :, None], low[:, None, :])
    return (torch.minimum(high[:, :, None], high[:, None, :]) - start).clamp(min=0)


def nms_of_sorted(bboxes_xyxy: Tensor, iou_threshold: float) -> Tensor:
    """Return which boxes (B, K) bool greedy suppression above a threshold keeps.

    They are (B, K, 4) float32, in the order of their scores, the best first; boxes that may not suppress each
    other must not overlap (`class_offsets`).
    """
    ranks = torch.arange(bboxes_xyxy.shape[1], device=bboxes_xyxy.device)
    before = ranks[None, :] < ranks[:, None]
    return greedy_keep_batch((pairwise_iou(bboxes_xyxy) > iou_threshold) & before)
