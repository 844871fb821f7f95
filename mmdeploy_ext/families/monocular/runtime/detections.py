"""3D boxes of one picture.

Glossary: n results.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

from mmdeploy_ext.runtime.detections import Scored, rows_with_scores


@dataclasses.dataclass(frozen=True)
class MonocularDetections(Scored):
    """Boxes of one picture, in the frame of its camera (x right, y down, z ahead).

    Attributes:
        boxes: (n, 9) float32: x, y, z of the middle of the bottom, m, unturned sizes along x, y and z, m, yaw
            about y in radians (0 along x, -pi/2 along z), velocity along x and z, m/s, or 0.
        scores: (n,) float32 in 0..1; above 1 if a PGD predicts the uncertainty of depths.
        labels: (n,) int64.
        attributes: (n,) int64, such as 'moving', or None.
        bboxes_xyxy: (n, 4) float32, pixels of the input or the original picture, or None.
        camera: four rows, camera's frame to pixels times depth, to draw with; may be empty.
        code_size: 7, or 9 with a velocity.
    """

    largest_score: ClassVar[float] = math.inf
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray | None = None
    bboxes_xyxy: np.ndarray | None = None
    camera: tuple[tuple[float, ...], ...] = ()
    code_size: int = 9

    def to_mmdet_result(self, num_classes: int) -> dict[str, Any]:
        import torch
        from mmdet3d.core.bbox import CameraInstance3DBoxes

        rows = torch.tensor(self.boxes[:, : self.code_size])
        boxes = dict(
            boxes_3d=CameraInstance3DBoxes(rows, box_dim=self.code_size),
            scores_3d=torch.tensor(self.scores),
            labels_3d=torch.tensor(self.labels),
        )
        if self.attributes is not None:
            boxes['attrs_3d'] = torch.tensor(self.attributes)
        results: dict[str, Any] = dict(img_bbox=boxes)
        if self.bboxes_xyxy is not None:
            corners = rows_with_scores(self.bboxes_xyxy, self.scores)
            results['img_bbox2d'] = self.by_class(corners, num_classes)
        return results

    def scaled(self, scale_factor: np.ndarray) -> MonocularDetections:
        ratios = scale_factor.astype(np.float32)
        corners = None if self.bboxes_xyxy is None else self.bboxes_xyxy / ratios
        rows = np.array(self.camera).reshape(-1, 4)
        rows[:2] /= ratios[:2, None][: len(rows)]  # of no camera there are no rows
        return dataclasses.replace(self, bboxes_xyxy=corners, camera=tuple(map(tuple, rows.tolist())))

    def place(self, index: int) -> dict[str, Any]:
        place: dict[str, Any] = dict(
            box=[round(float(value), 4) for value in self.boxes[index, : self.code_size]]
        )
        if self.attributes is not None:
            place['attribute'] = int(self.attributes[index])
        if self.bboxes_xyxy is not None:
            place['bbox_xyxy'] = [round(float(value), 3) for value in self.bboxes_xyxy[index]]
        return place


def padded_boxes(boxes: np.ndarray) -> np.ndarray:
    """Return boxes (n, 9) float32 of boxes (n, 7 to 9); missing velocities are 0."""
    return np.pad(boxes, [(0, 0), (0, 9 - boxes.shape[1])]).astype(np.float32)
