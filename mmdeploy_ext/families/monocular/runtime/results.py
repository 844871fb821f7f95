"""Results of graphs of the form 'full', and their pictures, for FCOS3D, PGD and SMOKE alike.

Glossary: B batch, n results of the picture that has most, h, w original picture in pixels.
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
"""From the frame of a camera (x right, y down, z ahead) to one with z up (x right, y ahead), in which boxes
are drawn: x, z, -y."""


def rows_of_camera(feeds: Arrays, index: int) -> tuple[tuple[float, ...], ...]:
    """Return the camera of an index in the batch as `MonocularDetections` has it, before it is scaled.

    It is `unmoved_cam2img` of the feeds, for pixels of the resized picture without padding or warp, not of
    the network input; () if that is not fed.
    """
    if 'unmoved_cam2img' not in feeds:
        return ()
    return tuple(tuple(map(float, row)) for row in feeds['unmoved_cam2img'][index])


def from_padded(outputs: Arrays, feeds: Arrays) -> list[MonocularDetections]:
    """Return the results per picture of a graph of the form 'full'; rows of label -1 are padding.

    Args:
        outputs: `boxes` (B, n, 7 or 9) float32, `scores` (B, n), `labels` (B, n) int64, and, if the model has
            them, `attributes` (B, n) int64 and `bboxes` (B, n, 4) xyxy, pixels of the network input.
        feeds: see `detections` of `fcos3d` and `smoke`.
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
    """Return results with cameras and boxes in pixels of the original pictures.

    They are divided by `scale_factor` (B, 4), `w h w h`, of the feeds; without that boxes in the picture stay
    in pixels of the network input, and cameras as `rows_of_camera` has them. Boxes in 3D are in metres.
    """
    if 'scale_factor' not in feeds:
        return list(images)
    pairs = zip(images, feeds['scale_factor'], strict=True)
    return [results.scaled(scale_factor) for results, scale_factor in pairs]


def upright_boxes(boxes: np.ndarray) -> np.ndarray:
    """Return boxes (n, 9) in the frame with z up of `TO_UPRIGHT`, of boxes in the frame of the camera."""
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
    """Draw boxes of at least `score_thr` into a copy of a picture (h, w, 3); marked ones are outlined white.

    The picture is uint8 BGR, of the size that the camera of the results is for; `classes` are names by label.
    `marked` (n,) is True for marked ones among all results; None marks none.
    """
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
