"""Results of rotated boxes in numpy: mmrotate's suppression, and the outputs of `full` graphs.

Glossary: B batch, n results of the image that has most, or candidates of an image.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_mmrotate.detections import RotatedDetections
from mmdeploy_ext.families.heads import rotated_nms
from mmdeploy_ext.runtime.detections import unpadded

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays


def from_padded(outputs: Arrays, version: str) -> list[RotatedDetections]:
    """Return the results per image of a `full` graph.

    Its outputs are `dets` (B, n, 6) x and y of the centre, width, height, in pixels of the original if
    `scale_factor` was fed, else of the network input, angle in radians, score, best first, and `labels` (B,
    n), -1 for padding. With `--max-candidates` n is constant. `version` is the angle version of the model.
    """
    dets = outputs['dets']
    results = unpadded(RotatedDetections, boxes=dets[..., :5], scores=dets[..., 5], labels=outputs['labels'])
    return [dataclasses.replace(of_image, version=version) for of_image in results]


def sizes_of(feeds: Arrays, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return height and width (B, 2) of the contents of a batch, pixels, and the ratios (B, 4) of its boxes.

    Feeds hold `input` (B, 3, height, width), and may hold `img_shape` (B or 1, 2), height and width before
    padding, 0 for those of the input, and `scale_factor` (B or 1, 4) `w h w h`, by which boxes are divided:
    1 by default.
    """
    img_shape = np.broadcast_to(feeds.get('img_shape', np.zeros(2, np.float32)), (batch, 2))
    content = np.where(img_shape > 0, img_shape, np.float32(feeds['input'].shape[2:]))
    return content, np.broadcast_to(feeds.get('scale_factor', np.ones(4, np.float32)), (batch, 4))


def best_of(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` best scores (n,), best first, of equal ones the first.

    They are those of all scores if `count` is not positive.
    """
    order = np.argsort(-scores, kind='stable')
    return order[:count] if count > 0 else order


def suppressed(candidates: RotatedDetections, iou_threshold: float, max_per_img: int) -> RotatedDetections:
    """Return the candidates that greedy NMS within classes keeps, best first, `max_per_img` at most.

    If that is not positive, NMS alone decides. Candidates come in any order. NMS drops those whose IoU with a
    better one that is kept is `iou_threshold` or more. For it alone centres of each class are moved by its
    label times the largest coordinate of a centre plus the largest side plus 1, rounded to float32 as in
    mmrotate.
    """
    candidates = candidates.best_first()
    if not len(candidates):
        return candidates
    boxes = candidates.boxes.astype(np.float32)
    step = boxes[:, :2].max() + boxes[:, 2:4].max() + np.float32(1)
    moved = boxes.copy()
    moved[:, :2] += (candidates.labels.astype(np.float32) * step)[:, None]
    rows = rotated_nms(moved, iou_threshold)
    return candidates[rows[:max_per_img] if max_per_img > 0 else rows]
