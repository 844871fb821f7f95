"""CenterPoint's box decoding without PyTorch: peaks of heat maps, box values at the peaks, NMS from above.

Glossary: T tasks, K classes of a task, H, W heat map, n boxes of a task.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.plain import Plain
from mmdeploy_ext.runtime.bev_nms import circle_nms, rotated_nms
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.streampetr.boxes import sigmoid

if TYPE_CHECKING:
    from collections.abc import Mapping

NMS_TYPES = ('rotate', 'circle')
VALUES = ('reg', 'height', 'dim', 'rot', 'vel')
"""Outputs of a task besides its `heatmap`, in the order of a box's columns before they are decoded."""


@dataclasses.dataclass(frozen=True)
class BoxRule(Plain):
    """What turns the head's outputs into boxes.

    Attributes:
        num_classes: per task; labels count through them.
        voxel_size: (x, y) metres.
        pc_origin: (x, y) metres of the first cell's corner.
        out_size_factor: voxels per cell of the heat map.
        max_num: peaks that are looked at per task.
        score_threshold: peaks have to be above it; None or 0 keeps all.
        post_center_range: metres, inclusive, for the centre.
        norm_bbox: `dim` holds logarithms.
        with_velocity: there is a `vel`.
        nms_type: 'rotate' or 'circle'.
        nms_thr: largest IoU ('rotate').
        nms_score_threshold: once more, before NMS, inclusive ('rotate').
        pre_max_size: boxes per task that go into NMS ('rotate'); None takes all.
        post_max_size: boxes per task that come out.
        min_radius: per task; see `circle_nms` ('circle').
        post_center_limit_range: metres, inclusive, after NMS ('rotate'); empty keeps all.
    """

    limit: ClassVar[str] = 'post_max_size'
    """Name of the number of results that are kept at most."""

    num_classes: tuple[int, ...]
    voxel_size: tuple[float, float]
    pc_origin: tuple[float, float]
    out_size_factor: int
    max_num: int
    score_threshold: float | None
    post_center_range: tuple[float, ...]
    norm_bbox: bool
    with_velocity: bool
    nms_type: str
    nms_thr: float
    nms_score_threshold: float
    pre_max_size: int | None
    post_max_size: int | None
    min_radius: tuple[float, ...]
    post_center_limit_range: tuple[float, ...]

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the head's outputs: `reg_0`, ..., `heatmap_0`, `reg_1`, ..."""
        values = [name for name in VALUES if name != 'vel' or self.with_velocity]
        return tuple(
            f'{name}_{task}' for task in range(len(self.num_classes)) for name in (*values, 'heatmap')
        )

    def groups(self, labels: np.ndarray) -> np.ndarray:
        """Return the task of each label (n,): `limit` is for the results of each."""
        return np.searchsorted(np.cumsum(self.num_classes), labels, side='right')

    @classmethod
    def from_json(cls, content: Mapping[str, Any], path: object = 'the file') -> BoxRule:
        """Rebuild from `to_json`.

        Raises:
            ModelFileError: an entry is missing.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in content]
        if missing:
            raise ModelFileError(
                f'{path}: its post-processing has no {", ".join(missing)}; export it again with '
                f'tools/deployment/pytorch2onnx.py'
            )
        return super().from_json({name: content[name] for name in names})


def decode(outputs: Mapping[str, np.ndarray], rule: BoxRule) -> Detections3D:
    """Decode the head's outputs of one sweep.

    Args:
        outputs: by name; `heatmap_t` (1, K, H, W) logits, `reg_t` (1, 2, H, W) cells, `height_t` (1, 1, H, W)
            m, `dim_t` (1, 3, H, W), `rot_t` (1, 2, H, W) sine and cosine, `vel_t` (1, 2, H, W) m/s.
        rule: of the file.

    Returns:
        Detections in descending score order, z at the bottom; of equal scores the earlier task first.

    Source: mmdet3d 1.0.0rc6, models/dense_heads/centerpoint_head.py `get_bboxes` and
    core/bbox/coders/centerpoint_bbox_coders.py.
    """
    parts = []
    first_label = 0
    for task, count in enumerate(rule.num_classes):
        kinds = [name for name in (*VALUES, 'heatmap') if f'{name}_{task}' in outputs]
        named = {name: outputs[f'{name}_{task}'] for name in kinds}
        boxes, scores, labels = suppress(*task_boxes(named, rule), task, rule)
        parts.append((boxes, scores, labels + first_label))
        first_label += count
    boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    boxes[:, 2] -= boxes[:, 5] * np.float32(0.5)
    if not rule.with_velocity:
        boxes = np.concatenate([boxes, np.zeros((len(boxes), 2), np.float32)], axis=1)
    order = np.argsort(-scores, kind='stable')
    return Detections3D(boxes[order], scores[order], labels[order])


def task_boxes(named: Mapping[str, np.ndarray], rule: BoxRule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (n, 7 or 9) with z in the middle, scores (n,) and labels (n,) of one task, best first."""
    heat = sigmoid(named['heatmap'][0])
    _, height, width = heat.shape
    scores = heat.reshape(-1)
    best = np.argsort(-scores, kind='stable')[: rule.max_num]
    scores, labels, cells = scores[best], best // (height * width), best % (height * width)
    values = {
        name: named[name][0].reshape(named[name].shape[1], -1)[:, cells].T.astype(np.float32)
        for name in VALUES
        if name in named
    }
    grid = np.stack([cells % width, cells // width], axis=1).astype(np.float32)
    xy = (grid + values['reg']) * np.float32(rule.out_size_factor)
    xy = xy * np.float32(rule.voxel_size) + np.float32(rule.pc_origin)
    sizes = np.exp(values['dim']) if rule.norm_bbox else values['dim']
    yaw = np.arctan2(values['rot'][:, :1], values['rot'][:, 1:])
    columns = [xy, values['height'], sizes, yaw]
    if rule.with_velocity:
        columns.append(values['vel'])
    boxes = np.concatenate(columns, axis=1).astype(np.float32)
    keep = _in_range(boxes, rule.post_center_range)
    if rule.score_threshold:
        keep &= scores > np.float32(rule.score_threshold)
    return boxes[keep], scores[keep], labels[keep]


def suppress(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, task: int, rule: BoxRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Apply NMS, whatever the classes, to the boxes of one task, best first."""
    if rule.nms_type == 'circle':
        keep = circle_nms(boxes[:, :2], rule.min_radius[task])[: rule.post_max_size]
        return boxes[keep], scores[keep], labels[keep]
    found = slice(None)
    if rule.nms_score_threshold > 0:
        found = scores >= np.float32(rule.nms_score_threshold)
    boxes, scores, labels = boxes[found], scores[found], labels[found]
    keep = rotated_nms(boxes[: rule.pre_max_size, [0, 1, 3, 4, 6]], rule.nms_thr)[: rule.post_max_size]
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    if rule.post_center_limit_range:
        inside = _in_range(boxes, rule.post_center_limit_range)
        boxes, scores, labels = boxes[inside], scores[inside], labels[inside]
    return boxes, scores, labels


def _in_range(boxes: np.ndarray, limits: tuple[float, ...]) -> np.ndarray:
    low, high = np.float32(limits[:3]), np.float32(limits[3:])
    return (boxes[:, :3] >= low).all(1) & (boxes[:, :3] <= high).all(1)
