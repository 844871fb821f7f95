"""Outputs of monocular heads to boxes; `xp` is numpy or torch.

A box is x, y, z of the middle of its bottom in metres, in the frame of the camera (x right, y down, z ahead),
unturned sizes along x, y and z in metres, yaw about y in radians (0 along x, -pi/2 along z), and of some
models velocity along x and z in m/s. A camera is the matrix (4, 4) from its frame to pixels of the network
input times depth, with the last row 0 0 0 1. KITTI's has a translation, nuScenes' is a matrix (3, 3) in its
upper left.

Source: mmdet3d 1.0.0rc6, core/bbox/coders/{fcos3d,pgd,smoke}_bbox_coder.py, core/bbox/structures/utils.py,
models/dense_heads/{fcos_mono3d,pgd,smoke_mono3d}_head.py.
Glossary: B images, A cells of a level, K peaks, C classes, D values of a box.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.runtime.bird_eye import BoxLayer
from mmdeploy_ext.runtime.box_coders import constant
from mmdeploy_ext.runtime.detections import Scored, rows_with_scores
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.draw3d import draw_camera
from mmdeploy_ext.runtime.geometry import sigmoid, softmax

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from mmdeploy_ext.families.monocular.facts import Depth, PointsFacts, SmokeFacts
    from mmdeploy_ext.runtime.detections import Arrays


PI = float(np.float32(np.pi))
NO_ZERO = 1e-7


def cross(xp: ModuleType, first: Any, second: Any) -> Any:
    """Return the cross products (..., 3) of vectors (..., 3)."""
    (x, y, z), (u, v, w) = ([side[..., axis] for axis in range(3)] for side in (first, second))
    return xp.stack([y * w - z * v, z * u - x * w, x * v - y * u], -1)


def located(xp: ModuleType, centres: Any, depths: Any, cam2img: Any) -> Any:
    """Return the places (B, A, 3) of picture `centres` (B, A, 2), pixels, in the camera's frame, m.

    `depths` (B, A), metres, are the factor of pixels: z plus the third entry of the camera's translation.
    """
    rows = [cam2img[:, row, :3] for row in range(3)]
    columns = [cross(xp, rows[1], rows[2]), cross(xp, rows[2], rows[0]), cross(xp, rows[0], rows[1])]
    determinant = (rows[0] * columns[0]).sum(-1)[:, None]
    projected = xp.concatenate([centres * depths[..., None], depths[..., None]], -1) - cam2img[:, None, :3, 3]
    return sum(projected[..., axis : axis + 1] * (columns[axis] / determinant)[:, None] for axis in range(3))


def on_the_ground(xp: ModuleType, boxes: Any) -> Any:
    """Move boxes (..., D) from the middle of the volume to the middle of the bottom."""
    bottom = boxes[..., 1:2] + boxes[..., 4:5] * 0.5
    return xp.concatenate([boxes[..., :1], bottom, boxes[..., 2:]], -1)


def seen_from_above(xp: ModuleType, boxes: Any) -> Any:
    """Return x, z, sizes along x and z and minus the yaw (..., 5), for a suppression."""
    parts = [boxes[..., 0], boxes[..., 2], boxes[..., 3], boxes[..., 5], -boxes[..., 6]]
    return xp.stack(parts, -1)


def mixed_depth(xp: ModuleType, direct: Any, logits: Any, depth: Depth) -> Any:
    """Return PGD's depths (B, A) of direct depths (B, A) and logits of bins (B, A, bins)."""
    expected = (softmax(logits) * constant(depth.bins, logits)).sum(-1)
    if depth.logarithms:
        expected = xp.exp(expected)
    return direct * depth.direct + expected * (1 - depth.direct)


def scores_of(xp: ModuleType, rows: Mapping[str, Any], facts: PointsFacts) -> Any:
    """Return the scores (B, A, C) that FCOS3D and PGD compare with thresholds."""
    scores = sigmoid(rows['cls_score']) * sigmoid(rows['centerness'])
    if facts.depth:
        shares = softmax(rows['depth_cls_pred'])
        best = shares.topk(2, -1)[0] if hasattr(shares, 'topk') else np.sort(shares, -1)[..., -2:]
        scores = scores * best.mean(-1)[..., None]
        if facts.depth.uncertain:
            scores = scores * xp.exp(-rows['weight'][..., -1:])
    return scores


def boxes_of(xp: ModuleType, rows: Mapping[str, Any], points: Any, cam2img: Any, facts: PointsFacts) -> Any:
    """Return boxes (B, A, D) of a level of FCOS3D or PGD; the yaw may be outside of -pi..pi.

    `rows` are head outputs (B, A, columns); `bbox_pred` begins with x and y of the cell's middle minus the
    centre's, pixels, depth, length, height, width, m, yaw along the ray, rad, and maybe velocity, m/s.
    `points` (A, 2) are the cells' middles, pixels of the network input.
    """
    boxes = rows['bbox_pred'][..., : facts.code_size]
    centres, depths = points - boxes[..., :2], boxes[..., 2]
    if facts.depth:
        depths = mixed_depth(xp, depths, rows['depth_cls_pred'], facts.depth)
    places = located(xp, centres, depths, cam2img)
    yaw, offset = boxes[..., 6], facts.dir_offset
    if 'dir_cls_pred' in rows:
        directions = rows['dir_cls_pred']
        turns = xp.where(directions[..., 1] > directions[..., 0], constant(PI, yaw), constant(0.0, yaw))
    else:
        turns = 0.0
    turned = yaw - offset
    yaw = turned - xp.floor(turned / PI) * PI + offset + turns
    focal, middle = cam2img[:, 0, :1], cam2img[:, 0, 2:3]
    yaw = xp.arctan((centres[..., 0] - middle) / focal) + yaw
    return on_the_ground(xp, xp.concatenate([places, boxes[..., 3:6], yaw[..., None], boxes[..., 7:]], -1))


def corners_of(xp: ModuleType, sides: Any, points: Any, clip_hw: Any) -> Any:
    """Return boxes (B, A, 4) xyxy, pixels, of left, top, right, bottom distances to points (A, 2)."""
    upper = xp.stack([clip_hw[:, 1], clip_hw[:, 0]], -1)[:, None]
    corners = [points - sides[..., :2], points + sides[..., 2:]]
    return xp.concatenate([xp.minimum(xp.clip(corner, 0, None), upper) for corner in corners], -1)


def rows_of_results(
    xp: ModuleType, rows: Mapping[str, Any], points: Any, cam2img: Any, clip_hw: Any, facts: PointsFacts
) -> dict[str, Any]:
    """Return name of an output of 'decode' -> rows (B, A, columns) of a level of FCOS3D or PGD."""
    results = dict(boxes=boxes_of(xp, rows, points, cam2img, facts), scores=scores_of(xp, rows, facts))
    if facts.attributes:
        results['attr_pred'] = rows['attr_pred']
    if facts.sides:
        results['bboxes'] = corners_of(xp, rows['bbox_pred'][..., -4:], points, clip_hw)
    return results


def smoke_boxes(
    xp: ModuleType, values: Any, cells: Any, labels: Any, cam2img: Any, stride: Any, facts: SmokeFacts
) -> Any:
    """Return the boxes (B, K, D) of SMOKE's peaks.

    `values` (B, K, 8) are the depth's offset, the centre's offset x, y in cells, three logarithms of sizes
    over the class's, sine and cosine of the yaw along the ray plus a quarter turn. `cells` (B, K, 2) are x
    and y, `labels` (B, K) int64, `stride` (2,) pixels of a cell.
    """
    mean, spread = facts.base_depth
    depths = values[..., 0] * spread + mean
    places = located(xp, (cells + values[..., 1:3]) * stride, depths, cam2img)
    sizes = xp.exp(values[..., 3:6]) * constant(facts.base_dims, values)[labels]
    sine, cosine = values[..., 6], values[..., 7]
    ray = xp.arctan(places[..., 0] / (places[..., 2] + NO_ZERO))
    quarter = xp.where(cosine >= 0, constant(-PI / 2, sine), constant(PI / 2, sine))
    yaw = xp.arctan(sine / (cosine + NO_ZERO)) + quarter + ray
    yaw = xp.where(yaw > PI, yaw - 2 * PI, yaw)
    yaw = xp.where(yaw < -PI, yaw + 2 * PI, yaw)
    return on_the_ground(xp, xp.concatenate([places, sizes, yaw[..., None]], -1))


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
