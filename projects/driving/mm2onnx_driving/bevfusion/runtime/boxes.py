"""Boxes of BEVFusion without PyTorch: columns, limits of the coder, suppression.

Glossary: Q queries, n boxes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_driving.bevfusion.facts import Circle
from mmdeploy_ext.runtime.bev_nms import circle_nms, rotated_nms
from mmdeploy_ext.runtime.detections3d import Detections3D, in_range

if TYPE_CHECKING:
    from mm2onnx_driving.bevfusion.facts import Coder, Rotated


def filter_boxes(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, coder: Coder) -> Detections3D:
    """Return the boxes (of (Q, 9), z at the bottom) within the limits of a coder, best first."""
    valid = np.ones(len(scores), bool)
    if coder.post_center_range is not None:
        valid = in_range(boxes, coder.post_center_range)
    if coder.score_threshold:
        valid &= scores > coder.score_threshold
    return Detections3D(boxes.astype(np.float32), scores, labels.astype(np.int64))[valid].best_first()


def suppress(detections: Detections3D, nms: Circle | tuple[Circle | Rotated, ...] | None) -> Detections3D:
    """Remove boxes that are too near to a better box of their group; `detections` are best first."""
    if nms is None:
        return detections
    groups = nms
    if isinstance(nms, Circle):
        groups = [dataclasses.replace(nms, classes=(label,)) for label in nms.classes]
    remains = ~np.isin(detections.labels, [label for group in groups for label in group.classes])
    for group in groups:
        rows = np.flatnonzero(np.isin(detections.labels, group.classes))
        remains[rows[rows_after_nms(detections.boxes[rows], detections.labels[rows], group)]] = True
    return detections[remains]


def rows_after_nms(boxes: np.ndarray, labels: np.ndarray, group: Circle | Rotated) -> np.ndarray:
    """Return the indices of a group's boxes (n, 9), best first, that NMS keeps."""
    if isinstance(group, Circle):
        return circle_nms(boxes[:, :2], group.radius)[: group.most]
    boxes_bev = boxes[: group.first, [0, 1, 3, 4, 6]]
    scales = np.float32(group.scales)[np.searchsorted(group.classes, labels[: group.first])]
    boxes_bev[:, 2:4] *= scales[:, None]
    return rotated_nms(boxes_bev, group.overlap)[: group.most]
