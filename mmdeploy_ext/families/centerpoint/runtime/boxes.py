"""CenterPoint's box decoding without PyTorch: peaks of heat maps, box values at the peaks, NMS from above.

Glossary: T tasks, K classes of a task, H, W heat map, n boxes of a task.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mmdeploy_ext.families.parts.runtime.scores import sigmoid, top_rows
from mmdeploy_ext.runtime.bev_nms import circle_nms, rotated_nms
from mmdeploy_ext.runtime.detections3d import Detections3D, HeadRule, in_range

if TYPE_CHECKING:
    from collections.abc import Mapping

NMS_TYPES = ('rotate', 'circle')
VALUES = dict(reg=2, height=1, dim=3, rot=2, vel=2)
"""Outputs of a task besides its `heatmap` -> channels, in the order of a box's columns before decoding."""


@dataclasses.dataclass(frozen=True)
class BoxRule(HeadRule):
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
    candidates: ClassVar[tuple[str, ...]] = ('max_num', 'pre_max_size')
    """Names of the numbers of boxes that are looked at."""

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

    @property
    def output_axes(self) -> dict[str, tuple[int | None, ...]]:
        """The outputs that `decode` takes, see `HeadRule.output_axes`."""
        channels = {
            f'{name}_{task}': VALUES.get(name, classes)
            for task, classes in enumerate(self.num_classes)
            for name in (*VALUES, 'heatmap')
        }
        return {name: (None, channels[name], None, None) for name in self.output_names}

    def groups(self, labels: np.ndarray) -> np.ndarray:
        """Return the task of each label (n,): `limit` is for the results of each."""
        return np.searchsorted(np.cumsum(self.num_classes), labels, side='right')


def decode(outputs: Mapping[str, np.ndarray], rule: BoxRule) -> Detections3D:
    """Decode the head's outputs of one sweep, best first; of equal scores the earlier task first.

    These are `heatmap_t` (1, K, H, W) logits, `reg_t` (1, 2, H, W) cells, `height_t` (1, 1, H, W) m, `dim_t`
    (1, 3, H, W), `rot_t` (1, 2, H, W) sine and cosine, `vel_t` (1, 2, H, W) m/s.

    Source: mmdet3d 1.0.0rc6, models/dense_heads/centerpoint_head.py `get_bboxes` and
    core/bbox/coders/centerpoint_bbox_coders.py.
    """
    parts = []
    for task in range(len(rule.num_classes)):
        kinds = [name for name in (*VALUES, 'heatmap') if f'{name}_{task}' in outputs]
        found = suppress(task_boxes({name: outputs[f'{name}_{task}'] for name in kinds}, rule), task, rule)
        parts.append((found.boxes, found.scores, found.labels + sum(rule.num_classes[:task])))
    boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    boxes[:, 2] -= boxes[:, 5] * np.float32(0.5)
    return Detections3D(boxes, scores, labels).best_first()


def task_boxes(named: Mapping[str, np.ndarray], rule: BoxRule) -> Detections3D:
    """Return the boxes of one task, best first, with z in the middle; velocities are 0 where it has none."""
    heat = sigmoid(named['heatmap'][0])
    _, height, width = heat.shape
    scores = heat.reshape(-1)
    best = top_rows(scores, rule.max_num)
    labels, cells = np.divmod(best, height * width)
    values = {
        name: given[0].reshape(given.shape[1], -1)[:, cells].T.astype(np.float32)
        for name, given in named.items()
    }
    grid = np.stack([cells % width, cells // width], axis=1).astype(np.float32)
    xy = (grid + values['reg']) * np.float32(rule.out_size_factor)
    xy = xy * np.float32(rule.voxel_size) + np.float32(rule.pc_origin)
    sizes = np.exp(values['dim']) if rule.norm_bbox else values['dim']
    yaw = np.arctan2(values['rot'][:, :1], values['rot'][:, 1:])
    speed = values['vel'] if rule.with_velocity else np.zeros((len(xy), 2), np.float32)
    boxes = np.concatenate([xy, values['height'], sizes, yaw, speed], axis=1).astype(np.float32)
    found = Detections3D(boxes, scores[best], labels)
    keep = in_range(boxes, rule.post_center_range)
    if rule.score_threshold:
        keep &= found.scores > np.float32(rule.score_threshold)
    return found[keep]


def suppress(found: Detections3D, task: int, rule: BoxRule) -> Detections3D:
    """Apply NMS, whatever the classes, to the boxes of one task, best first."""
    if rule.nms_type == 'circle':
        return found[circle_nms(found.boxes[:, :2], rule.min_radius[task])[: rule.post_max_size]]
    if rule.nms_score_threshold > 0:
        found = found[found.scores >= np.float32(rule.nms_score_threshold)]
    seen = found.boxes[: rule.pre_max_size, [0, 1, 3, 4, 6]]
    found = found[rotated_nms(seen, rule.nms_thr)[: rule.post_max_size]]
    if rule.post_center_limit_range:
        found = found[in_range(found.boxes, rule.post_center_limit_range)]
    return found
