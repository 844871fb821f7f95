"""Boxes of CenterPoint's head in numpy: facts, decoding, suppression (also for BEVDet).

Glossary: K classes of a task, H, W heat map, n boxes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np

from mmdeploy_ext.runtime.bird_eye import circle_nms, rotated_nms
from mmdeploy_ext.runtime.detections import top_rows
from mmdeploy_ext.runtime.detections3d import Detections3D, in_lidar_columns, in_range, seen_from_above
from mmdeploy_ext.runtime.geometry import exact_sigmoid
from mmdeploy_ext.spec.facts import (
    Bounds,
    Count,
    Facts,
    Limit,
    NotNegative,
    Positive,
    Range,
    optional,
)

VALUES = dict(reg=2, height=1, dim=3, rot=2, vel=2)
"""Outputs of a task besides `heatmap` -> channels, in column order before decoding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CenterBoxFacts(Facts):
    """The settings that turn the head's outputs into boxes.

    Attributes:
        num_classes: classes of each task; labels are numbered through all tasks.
        voxel_size: (x, y) metres.
        pc_origin: (x, y) metres of the first cell's corner.
        out_size_factor: voxels per cell of the heat map.
        max_num: (class, cell) pairs with the best scores that are decoded per task.
        score_threshold: exclusive; None or 0 keeps all.
        post_center_range: lowest x, y, z, then highest, of the boxes' middles in metres, ends included.
        norm_bbox: `dim` holds logarithms of the sizes.
        with_velocity: the head has an output `vel`.
        nms_type: 'rotate' or 'circle', of all tasks, or one per task.
        nms_thr: bird's-eye IoU, inclusive ('rotate'); of all tasks, or one per task.
        nms_score_threshold: second threshold, inclusive ('rotate').
        pre_max_size: boxes per task before NMS ('rotate'); None takes all.
        post_max_size: boxes per task after NMS; None takes all.
        min_radius: per task the squared distance of centres, m2, inclusive ('circle').
        post_center_limit_range: as `post_center_range`, after NMS ('rotate'); empty keeps all.
        nms_scale: per task factors of each class's sizes before NMS ('rotate'); empty scales nothing.
        box_convention: mmdet3d of the training.
    """

    num_classes: Annotated[tuple[Count, ...], Bounds(1)]
    voxel_size: tuple[Positive, Positive]
    pc_origin: tuple[float, float]
    out_size_factor: Count
    max_num: Count
    score_threshold: float | None
    post_center_range: Range
    norm_bbox: bool
    with_velocity: bool
    nms_type: Literal['rotate', 'circle'] | Annotated[tuple[Literal['rotate', 'circle'], ...], Bounds(1)]
    nms_thr: NotNegative | Annotated[tuple[NotNegative, ...], Bounds(1)]
    nms_score_threshold: float
    pre_max_size: Limit | None
    post_max_size: Limit | None
    min_radius: tuple[NotNegative, ...]
    post_center_limit_range: Range | tuple[()]
    nms_scale: tuple[tuple[Positive, ...], ...] = optional(())
    box_convention: Literal['0.17', '1.x'] = optional('1.x')

    @property
    def output_names(self) -> tuple[str, ...]:
        values = [name for name in VALUES if name != 'vel' or self.with_velocity]
        return tuple(
            f'{name}_{task}' for task in range(len(self.num_classes)) for name in (*values, 'heatmap')
        )


def head_settings(head: Any) -> dict[str, Any]:
    """Return the fields of `CenterBoxFacts` of mmdet3d's `CenterHead`, without `nms_scale`."""
    coder, test, tasks = head.bbox_coder, head.test_cfg, len(head.num_classes)
    kinds = [str(kind) for kind in per_task(test['nms_type'], tasks)]
    limits = [float(limit) for limit in per_task(test.get('nms_thr') or 0.0, tasks)]
    return dict(
        num_classes=[int(count) for count in head.num_classes],
        voxel_size=[float(size) for size in coder.voxel_size[:2]],
        pc_origin=[float(value) for value in coder.pc_range[:2]],
        out_size_factor=int(coder.out_size_factor),
        max_num=int(coder.max_num),
        score_threshold=coder.score_threshold,
        post_center_range=[float(value) for value in coder.post_center_range],
        norm_bbox=bool(head.norm_bbox),
        with_velocity=bool(head.with_velocity),
        nms_type=kinds[0] if len(set(kinds)) == 1 else kinds,
        nms_thr=limits[0] if len(set(limits)) == 1 else limits,
        nms_score_threshold=float(test.get('score_threshold') or 0.0),
        pre_max_size=test.get('pre_max_size'),
        post_max_size=test.get('post_max_size'),
        min_radius=[float(radius) for radius in test.get('min_radius') or ()],
        post_center_limit_range=[float(value) for value in test.get('post_center_limit_range') or ()],
    )


def per_task(setting: Any, count: int) -> list[Any]:
    """Return a setting of `count` tasks or classes, which may be a list or one value for all."""
    return list(setting)[:count] if isinstance(setting, list | tuple) else [setting] * count


def decode(outputs: Mapping[str, np.ndarray], rule: CenterBoxFacts) -> Detections3D:
    """Decode the head's outputs of one sweep, best first; of equal scores the earlier task comes first.

    Task t has `heatmap_t` (1, K, H, W) logits, `reg_t` (1, 2, H, W) cells, `height_t` (1, 1, H, W) m, `dim_t`
    (1, 3, H, W) m or logarithms, `rot_t` (1, 2, H, W) sine and cosine, and `vel_t` (1, 2, H, W) m/s
    (`with_velocity`). Boxes (n, 9) are x, y, z of the bottom's centre, length, width, height, m, yaw, rad,
    vx, vy, m/s, in the LiDAR frame.

    Source: mmdet3d 1.0.0rc6, models/dense_heads/centerpoint_head.py `get_bboxes` and
    core/bbox/coders/centerpoint_bbox_coders.py.
    """
    tasks = []
    for task in range(len(rule.num_classes)):
        names = [name for name in (*VALUES, 'heatmap') if f'{name}_{task}' in outputs]
        candidates = task_boxes({name: outputs[f'{name}_{task}'] for name in names}, rule)
        detections = suppress(candidates, task, rule)
        first_label = sum(rule.num_classes[:task])
        tasks.append((detections.boxes, detections.scores, detections.labels + first_label))
    boxes, scores, labels = (np.concatenate(column) for column in zip(*tasks, strict=True))
    boxes[:, 2] -= boxes[:, 5] * np.float32(0.5)
    if rule.box_convention == '0.17':
        boxes = in_lidar_columns(boxes)
    return Detections3D(boxes, scores, labels).best_first()


def task_boxes(maps: Mapping[str, np.ndarray], rule: CenterBoxFacts) -> Detections3D:
    """Return a task's boxes before NMS, best first, z in the middle."""
    heat = exact_sigmoid(maps['heatmap'][0])
    _, height, width = heat.shape
    scores = heat.reshape(-1)
    peaks = top_rows(scores, rule.max_num)
    labels, cells = np.divmod(peaks, height * width)
    values = {
        name: array[0].reshape(array.shape[1], -1)[:, cells].T.astype(np.float32)
        for name, array in maps.items()
    }
    grid = np.stack([cells % width, cells // width], axis=1).astype(np.float32)
    xy = (grid + values['reg']) * np.float32(rule.out_size_factor)
    xy = xy * np.float32(rule.voxel_size) + np.float32(rule.pc_origin)
    sizes = np.exp(values['dim']) if rule.norm_bbox else values['dim']
    yaw = np.arctan2(values['rot'][:, :1], values['rot'][:, 1:])
    velocity = values['vel'] if rule.with_velocity else np.zeros((len(xy), 2), np.float32)
    boxes = np.concatenate([xy, values['height'], sizes, yaw, velocity], axis=1).astype(np.float32)
    detections = Detections3D(boxes, scores[peaks], labels)
    valid = in_range(boxes, rule.post_center_range)
    if rule.score_threshold:
        valid &= detections.scores > np.float32(rule.score_threshold)
    return detections[valid]


def suppress(detections: Detections3D, task: int, rule: CenterBoxFacts) -> Detections3D:
    """Return the boxes of one task that NMS keeps, best first, whatever their class."""
    kind, limit = (
        value[task] if isinstance(value, tuple) else value for value in (rule.nms_type, rule.nms_thr)
    )
    if kind == 'circle':
        rows = circle_nms(detections.boxes[:, :2], rule.min_radius[task])
        return detections[rows[: rule.post_max_size]]
    if rule.nms_score_threshold > 0:
        detections = detections[detections.scores >= np.float32(rule.nms_score_threshold)]
    boxes_bev = seen_from_above(detections.boxes[: rule.pre_max_size], rule.box_convention)
    if rule.nms_scale:
        factors = np.float32(rule.nms_scale[task])[detections.labels[: rule.pre_max_size]]
        boxes_bev[:, 2:4] *= factors[:, None]
    detections = detections[rotated_nms(boxes_bev, limit)[: rule.post_max_size]]
    if rule.post_center_limit_range:
        detections = detections[in_range(detections.boxes, rule.post_center_limit_range)]
    return detections
