"""Boxes of BEVFusion without PyTorch: their columns, the limits of the coder, and suppression.

Glossary: Q queries, n boxes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.bev_nms import circle_nms, rotated_nms
from mmdeploy_ext.runtime.detections3d import Detections3D, in_range

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def filter_boxes(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, coder: Mapping[str, Any]
) -> Detections3D:
    """Return the boxes within the limits of a coder, best first.

    Args:
        boxes: (Q, 9) in the columns of `Detections3D`, z at the bottom.
        scores: (Q,) in 0..1.
        labels: (Q,) class indices.
        coder: entry `coder` of the metadata's `postprocess`: `post_center_range`, the lowest and then the
            highest x, y, z of a box, the z of its bottom, metres, ends included, and `score_threshold`, which
            scores have to exceed; None, and of the score 0, for no limit.
    """
    valid = np.ones(len(scores), bool)
    if coder['post_center_range'] is not None:
        valid = in_range(boxes, coder['post_center_range'])
    if coder['score_threshold']:
        valid &= scores > coder['score_threshold']
    return Detections3D(boxes.astype(np.float32), scores, labels.astype(np.int64))[valid].best_first()


def suppress(
    detections: Detections3D, nms: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
) -> Detections3D:
    """Return `detections`, which are best first, without those too near to a better one of their group.

    Groups are of classes; of a group no more than its `most` stay, all of them among its `first` best.
    `nms` is the entry `nms` of the metadata's `postprocess`: a list of groups, see `rows_after_nms`; one dict
    stands for a group of each of its classes; None suppresses nothing. Classes of no group stay.
    """
    if nms is None:
        return detections
    groups = [dict(nms, classes=[label]) for label in nms['classes']] if isinstance(nms, dict) else nms
    remains = ~np.isin(detections.labels, [label for group in groups for label in group['classes']])
    for group in groups:
        rows = np.flatnonzero(np.isin(detections.labels, group['classes']))
        remains[rows[rows_after_nms(detections.boxes[rows], detections.labels[rows], group)]] = True
    return detections[remains]


def rows_after_nms(boxes: np.ndarray, labels: np.ndarray, group: Mapping[str, Any]) -> np.ndarray:
    """Return which of a group's boxes NMS keeps: their indices, best first.

    Boxes are (n, 9), best first, `labels` their classes (n,). A group has `classes`, ascending; `most`, the
    largest number of results; and either `radius`, a squared distance in m2, or `overlap`, an IoU in the
    bird's-eye view, with `scales` of the sizes of each class and `first`, the number of the best boxes that
    are compared, of which the results are (None: all).
    """
    if 'radius' in group:
        return circle_nms(boxes[:, :2], group['radius'])[: group['most']]
    boxes_bev = boxes[: group['first'], [0, 1, 3, 4, 6]]
    scales = np.float32(group['scales'])[np.searchsorted(group['classes'], labels[: group['first']])]
    boxes_bev[:, 2:4] *= scales[:, None]
    return rotated_nms(boxes_bev, group['overlap'])[: group['most']]
