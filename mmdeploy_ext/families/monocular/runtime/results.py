"""Results of graphs of the form 'full', and their drawing, for FCOS3D, PGD and SMOKE.

Glossary: B batch, n results of the fullest picture, h, w original picture in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.monocular.runtime.detections import MonocularDetections, padded_boxes
from mmdeploy_ext.runtime.bird_eye import BoxLayer
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.draw3d import draw_camera

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.detections import Arrays

TO_UPRIGHT = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])
"""From the camera's frame (x right, y down, z ahead) to the drawing frame (x right, y ahead, z up)."""


def rows_of_camera(feeds: Arrays, index: int) -> tuple[tuple[float, ...], ...]:
    """Return the camera `unmoved_cam2img` of a picture, in resized pixels without padding or warp, or ()."""
    if 'unmoved_cam2img' not in feeds:
        return ()
    return tuple(tuple(map(float, row)) for row in feeds['unmoved_cam2img'][index])


def from_padded(outputs: Arrays, feeds: Arrays) -> list[MonocularDetections]:
    """Return the results per picture; rows of label -1 are padding.

    `outputs` are `boxes` (B, n, 7 or 9) float32, `scores` (B, n), `labels` (B, n) int64, and maybe
    `attributes` (B, n) int64 and `bboxes` (B, n, 4) xyxy, pixels of the network input.
    """
    images = []
    for index, labels in enumerate(outputs['labels']):
        present = labels >= 0
        optional = {
            field: outputs[name][index][present] if name in outputs else None
            for field, name in (('attributes', 'attributes'), ('bboxes_xyxy', 'bboxes'))
        }
        boxes = outputs['boxes'][index][present]
        images.append(
            MonocularDetections(
                padded_boxes(boxes),
                outputs['scores'][index][present],
                labels[present],
                camera=rows_of_camera(feeds, index),
                code_size=boxes.shape[1],
                **optional,
            )
        )
    return in_original_pixels(images, feeds)


def in_original_pixels(images: Sequence[MonocularDetections], feeds: Arrays) -> list[MonocularDetections]:
    """Divide cameras and 2D boxes by `scale_factor` (B, 4), `w h w h`, if it is in the feeds."""
    if 'scale_factor' not in feeds:
        return list(images)
    pairs = zip(images, feeds['scale_factor'], strict=True)
    return [results.scaled(scale_factor) for results, scale_factor in pairs]


def upright_boxes(boxes: np.ndarray) -> np.ndarray:
    """Return boxes (n, 9) in the frame of `TO_UPRIGHT`."""
    moved = boxes @ np.eye(9)[:, [0, 2, 1, 3, 5, 4, 6, 7, 8]]
    moved[:, 2] *= -1
    moved[:, 6] *= -1  # a turn about y, which points down, is one the other way about z, which points up
    return moved.astype(np.float32)


def draw(
    image_bgr: np.ndarray,
    results: MonocularDetections,
    classes: Sequence[str],
    score_thr: float = 0.3,
    marked: np.ndarray | None = None,
) -> np.ndarray:
    """Draw boxes of at least `score_thr` into a copy of a picture (h, w, 3) uint8 BGR; `marked` white."""
    if not results.camera:
        return image_bgr.copy()
    drawn = results.scores >= score_thr
    boxes = upright_boxes(results.boxes[drawn])
    layer = BoxLayer(
        '',
        Detections3D(boxes, results.scores[drawn], results.labels[drawn]),
        None if marked is None else marked[drawn],
    )
    return draw_camera(image_bgr, np.asarray(results.camera) @ np.linalg.inv(TO_UPRIGHT), layer, classes)
