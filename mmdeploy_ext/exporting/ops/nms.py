"""Non-maximum suppression on padded batches: mmcv's in PyTorch, the standard NonMaxSuppression in ONNX."""

from __future__ import annotations

from typing import Any

import torch

NMS_SCORE_THRESHOLD = -0.5
"""Rows that are no candidate carry the score -1; a true score lies in 0..1."""
BELOW_ALL = -1e30
"""Below every coordinate; stays finite when it is multiplied by a label."""


class BatchedNms(torch.autograd.Function):
    """Greedy NMS per image; boxes that may not suppress each other must not overlap (see `class_offsets`)."""

    @staticmethod
    def forward(ctx: Any, bboxes_xyxy: torch.Tensor, scores: torch.Tensor,
                iou_threshold: float, max_output: int) -> torch.Tensor:
        """Run mmcv's NMS on each image.

        Args:
            ctx: unused; nothing is differentiated.
            bboxes_xyxy: (B, N, 4) float32.
            scores: (B, 1, N) float32; `NMS_SCORE_THRESHOLD` or less marks a row that is no candidate.
            iou_threshold: suppress above this.
            max_output: keep at most this many per image.

        Returns:
            (n, 3) int64 rows of image, 0, box index.
        """
        from mmcv.ops import nms
        selected = []
        for image, (image_boxes, image_scores) in enumerate(zip(bboxes_xyxy, scores[:, 0], strict=True)):
            candidates = torch.nonzero(image_scores > NMS_SCORE_THRESHOLD).squeeze(1)
            if candidates.numel() == 0:
                continue
            _, keep = nms(image_boxes[candidates], image_scores[candidates], iou_threshold)
            keep = candidates[keep[:max_output]]
            selected.append(torch.stack([torch.full_like(keep, image), torch.zeros_like(keep), keep], dim=1))
        return torch.cat(selected) if selected else bboxes_xyxy.new_zeros((0, 3), dtype=torch.int64)

    @staticmethod
    def symbolic(g: Any, bboxes_xyxy: Any, scores: Any, iou_threshold: float, max_output: int) -> Any:
        """Emit NonMaxSuppression. IoU does not care which axis is called x, so `xyxy` needs no reordering."""
        return g.op('NonMaxSuppression', bboxes_xyxy, scores,
                    g.op('Constant', value_t=torch.tensor([max_output], dtype=torch.int64)),
                    g.op('Constant', value_t=torch.tensor([iou_threshold], dtype=torch.float32)),
                    g.op('Constant', value_t=torch.tensor([NMS_SCORE_THRESHOLD], dtype=torch.float32)))


def class_offsets(bboxes_xyxy: torch.Tensor, labels: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Shift each class to ground of its own, so that one NMS suppresses within classes only.

    Args:
        bboxes_xyxy: (B, N, 4).
        labels: (B, N) int64.
        candidates: (B, N) bool; only these count for the largest coordinate.

    Returns:
        (B, N, 4) shifted boxes, rounded exactly as mmcv's `batched_nms` rounds them.
    """
    visible = torch.where(candidates[..., None], bboxes_xyxy, torch.full_like(bboxes_xyxy, BELOW_ALL))
    largest = visible.flatten(1).max(dim=1, keepdim=True)[0]
    return bboxes_xyxy + (labels.to(bboxes_xyxy.dtype) * (largest + 1))[..., None]
