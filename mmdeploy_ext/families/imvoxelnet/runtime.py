"""ImVoxelNet in numpy: results of pictures from the outputs of a file of the form 'full' or 'raw'.

Glossary: B batch, n results of a picture (in a batch: of the fullest).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.families.common.runtime.anchors3d import AnchorRule, decode
from mmdeploy_ext.runtime.bird_eye import BoxLayer
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.draw3d import draw_camera
from mmdeploy_ext.spec.facts import Count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.detections import Arrays
    from mmdeploy_ext.spec.metadata import Metadata


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImVoxelNetFacts(AnchorRule):
    max_per_img: Count

    @property
    def max_num(self) -> int:
        return self.max_per_img


COLUMNS = 7


@dataclasses.dataclass(frozen=True)
class PictureDetections3D(Detections3D):
    """Boxes found in one picture, in the LiDAR's frame.

    Attributes:
        camera: matrix of four rows from the LiDAR's frame to pixels times depth, to draw with; may be empty.
    """

    camera: tuple[tuple[float, ...], ...] = ()

    def scaled(self, scale_factor: np.ndarray) -> PictureDetections3D:
        rows = np.array(self.camera).reshape(-1, 4)
        rows[:2] /= scale_factor[:2, None][: len(rows)]  # of no camera there are no rows
        return dataclasses.replace(self, camera=tuple(map(tuple, rows.tolist())))

    def to_mmdet_result(self, num_classes: int) -> dict[str, Any]:
        import torch
        from mmdet3d.core.bbox import LiDARInstance3DBoxes, bbox3d2result

        boxes = LiDARInstance3DBoxes(torch.tensor(self.boxes[:, :COLUMNS]))
        return bbox3d2result(boxes, torch.tensor(self.scores), torch.tensor(self.labels))

    def place(self, index: int) -> dict[str, Any]:
        return dict(box=[round(float(value), 4) for value in self.boxes[index, :COLUMNS]])


def detections(metadata: Metadata, outputs: Arrays, feeds: Arrays) -> list[PictureDetections3D]:
    """Return the results of each picture of a batch, best first.

    Args:
        metadata: metadata of the file: `form` and `postprocess`.
        outputs: by name; 'full': `boxes` (B, n, 7) float32, `scores` (B, n), `labels` (B, n) int64, -1 for
            padding; 'raw', of each level l, maps (B, anchors of a cell * values, Y, X): `cls_score_l` logits,
            `bbox_pred_l` seven deltas, `dir_cls_pred_l` logits of both directions.
        feeds: `lidar2img` (B, 4, 4), replaced by `drawn_camera` (B, 4, 4), to draw results into the picture
            on disk.
    """
    images = padded_rows(outputs) if metadata.form == 'full' else decoded(metadata, outputs)
    cameras = feeds['drawn_camera'] if 'drawn_camera' in feeds else feeds['lidar2img']
    return [
        PictureDetections3D(boxes, scores, labels, camera=tuple(map(tuple, camera.tolist())))
        for (boxes, scores, labels), camera in zip(images, np.asarray(cameras, np.float64), strict=True)
    ]


def padded_rows(outputs: Arrays) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return boxes (n, 9) with velocities 0, scores and labels (n,) of each picture."""
    rows = zip(outputs['boxes'], outputs['scores'], outputs['labels'], strict=True)
    return [
        (np.pad(boxes[labels >= 0], [(0, 0), (0, 2)]), scores[labels >= 0], labels[labels >= 0])
        for boxes, scores, labels in rows
    ]


def decoded(metadata: Metadata, outputs: Arrays) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rule, images = metadata.postprocess, []
    for index in range(len(outputs[rule.output_names[0]])):
        boxes = decode({name: outputs[name][index : index + 1] for name in rule.output_names}, rule)
        images.append((boxes.boxes, boxes.scores, boxes.labels))
    return images


def draw(
    image_bgr: np.ndarray,
    results: PictureDetections3D,
    classes: Sequence[str],
    score_thr: float = 0.3,
    marked: np.ndarray | None = None,
) -> np.ndarray:
    """Draw boxes of at least `score_thr` into a copy of a picture (h, w, 3) uint8 BGR; `marked` white."""
    drawn = results.scores >= score_thr
    layer = BoxLayer('', results[drawn], None if marked is None else marked[drawn])
    return draw_camera(image_bgr, np.asarray(results.camera), layer, classes)
