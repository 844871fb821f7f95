"""Suppression as TensorRT's plug-in EfficientNMS_TRT, of boxes that have one class each.

Source: NVIDIA/TensorRT, plugin/efficientNMSPlugin (behaviour in own words).

Glossary: B batch, N boxes, C classes, K most results of an image.
"""

import torch
from torch import Tensor

from mmdeploy_ext.upstream.operators.nms import greedy_keep_batch, pairwise_iou
from mmdeploy_ext.upstream.operators.operator import Operator, Plugin, register

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
