"""Anchors of `Anchor3DHead`, and its outputs to boxes, in numpy.

Source: mmdet3d 1.0.0rc6, models/dense_heads/{anchor3d,shape_aware}_head.py `get_bboxes_single`, core/anchor/
anchor_3d_generator.py, core/bbox/coders/delta_xyzwhlr_bbox_coder.py, core/post_processing/box3d_nms.py.
Glossary: L levels, A anchors of a cell, C classes, D values of a box (7, or 9 with a velocity), H, W map of a
level, n anchors or boxes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from mmdeploy_ext.runtime.bird_eye import rotated_nms
from mmdeploy_ext.runtime.detections import nms, top_rows
from mmdeploy_ext.runtime.detections3d import Detections3D, in_lidar_columns, seen_from_above
from mmdeploy_ext.runtime.geometry import sigmoid
from mmdeploy_ext.spec.facts import Bounds, Count, Facts, NotNegative, Positive, optional

if TYPE_CHECKING:
    from types import ModuleType

    from mmdeploy_ext.runtime.detections import Arrays

OUTPUTS = ('cls_score', 'bbox_pred', 'dir_cls_pred')
"""Outputs of a level: `cls_score_0`, `bbox_pred_0`, `dir_cls_pred_0`, ..."""
PI = float(np.float32(np.pi))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchorRule(Facts):
    """The settings that turn the head's outputs into boxes; `num_classes` is C, `code_size` D, `levels` L.

    Attributes:
        aligned: anchors lie in the middle of cells; otherwise the ends of a row are at the edges of its
            range.
        align_corner: aligned anchors lie at the corner of cells.
        ranges: six numbers per range of anchors: lowest and highest x, y, z, metres, LiDAR frame.
        sizes: three numbers per size, metres, along x, y and z before the turn.
        rotations: yaws of the anchors of a cell, radians.
        scales: factor of the sizes, per level.
        size_per_range: each range has one size; otherwise the first range has all.
        dir_offset, dir_limit_offset: the yaw is turned by half turns into the half circle from dir_offset -
            dir_limit_offset * pi, radians; the direction classifier may add half a turn.
        nms_pre: most anchors of a level that are decoded; 0 or less takes all.
        score_thr: exclusive threshold.
        nms_thr: bird's-eye IoU, exclusive; inclusive if `rotated`.
        rotated: IoU of rotated boxes, not of sizes along the axes.
        cells: rows and columns of the map of each range, for heads with a map per range (SSN); else empty.
        box_convention: mmdet3d of the training; `sizes` and `rotations` are its.
    """

    num_classes: Count
    code_size: Annotated[int, Bounds(7, 9)]
    levels: Count
    aligned: bool
    align_corner: bool
    ranges: tuple[float, ...]
    sizes: tuple[Positive, ...]
    rotations: tuple[float, ...]
    scales: tuple[Positive, ...]
    size_per_range: bool
    dir_offset: float
    dir_limit_offset: float
    nms_pre: int
    score_thr: float
    nms_thr: NotNegative
    rotated: bool
    cells: tuple[Count, ...] = optional(())
    box_convention: Literal['0.17', '1.x'] = optional('1.x')

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(f'{name}_{level}' for level in range(self.levels) for name in OUTPUTS)


def anchors_of(rule: AnchorRule, level: int, height: int, width: int) -> np.ndarray:
    """Return the anchors of a level (height * width * A, D) float32, cell by cell, row by row.

    Columns are x, y, z of the bottom's centre, three sizes and yaw, metres and radians; velocities are 0.
    """
    ranges = np.float32(rule.ranges).reshape(-1, 6)
    sizes = np.float32(rule.sizes).reshape(-1, 3) * np.float32(rule.scales[level])
    pairs = zip(ranges, sizes[:, None], strict=True) if rule.size_per_range else [(ranges[0], sizes)]
    grids = [anchor_grid(rule, limits, sizes_of_range, height, width) for limits, sizes_of_range in pairs]
    return np.concatenate(grids, axis=2).reshape(-1, rule.code_size)


def anchors_by_range(rule: AnchorRule) -> np.ndarray:
    """Return anchors (n, D) float32 by range, then rotation, then row."""
    ranges = np.float32(rule.ranges).reshape(-1, 6)
    sizes = np.float32(rule.sizes).reshape(-1, 1, 3) * np.float32(rule.scales[0])
    maps = zip(ranges, sizes, np.reshape(rule.cells, (-1, 2)).tolist(), strict=True)
    grids = [anchor_grid(rule, limits, size, *map_size) for limits, size, map_size in maps]
    return np.concatenate([grid.transpose(2, 3, 0, 1, 4).reshape(-1, rule.code_size) for grid in grids])


def anchor_grid(
    rule: AnchorRule, limits: np.ndarray, sizes: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Return a range's anchors: (height, width, sizes, rotations, D) float32."""
    (z,), y, x = (
        anchor_centres(rule, limits[axis], limits[axis + 3], count)
        for axis, count in ((2, 1), (1, height), (0, width))
    )
    grid = np.zeros((height, width, len(sizes), len(rule.rotations), rule.code_size), np.float32)
    grid[..., 0], grid[..., 1], grid[..., 2] = x[:, None, None], y[:, None, None, None], z
    grid[..., 3:6], grid[..., 6] = sizes[:, None], np.float32(rule.rotations)
    return grid


def anchor_centres(rule: AnchorRule, low: float, high: float, count: int) -> np.ndarray:
    """Return `count` anchor coordinates along an axis from `low` to `high`, metres."""
    if not rule.aligned:
        return np.linspace(low, high, count, dtype=np.float32)
    edges = np.linspace(low, high, count + 1, dtype=np.float32)
    return edges[:count] + (0 if rule.align_corner else (edges[1] - edges[0]) / np.float32(2))


def decode(outputs: Arrays, rule: AnchorRule) -> Detections3D:
    """Decode the head's outputs of one sweep or picture, best first; missing velocities are 0.

    Level l has `cls_score_l` (1, A * C, H, W) logits, `bbox_pred_l` (1, A * D, H, W), `dir_cls_pred_l` (1, A
    * 2, H, W); with `cells` (1, n, C), (1, n, D), (1, n, 2).
    """
    levels = [decode_level(outputs, rule, level) for level in range(rule.levels)]
    boxes, scores, turned = (np.concatenate(column) for column in zip(*levels, strict=True))
    rows_of_classes, labels = [], []
    for label in range(rule.num_classes):
        candidates = np.flatnonzero(scores[:, label] > np.float32(rule.score_thr))
        rows = candidates[suppress(boxes[candidates], scores[candidates, label], rule)]
        rows_of_classes.append(rows)
        labels.append(np.full_like(rows, label))
    row, label = np.concatenate(rows_of_classes), np.concatenate(labels)
    order = top_rows(scores[row, label], rule.max_num)
    row, label = row[order], label[order]
    boxes = np.pad(boxes[row], [(0, 0), (0, 9 - rule.code_size)])
    boxes[:, 6] = turned_yaw(np, boxes[:, 6], turned[row], rule)
    if rule.box_convention == '0.17':
        boxes = in_lidar_columns(boxes)
    return Detections3D(boxes, scores[row, label], label)


def decode_level(outputs: Arrays, rule: AnchorRule, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (n, D), scores (n, C), and 1 for turned boxes (n,), of the best anchors."""
    maps = [outputs[f'{name}_{level}'][0] for name in OUTPUTS]
    if rule.cells:
        (logits, deltas, directions), anchors = maps, anchors_by_range(rule)
    else:
        widths = rule.num_classes, rule.code_size, 2
        logits, deltas, directions = (
            array.transpose(1, 2, 0).reshape(-1, columns) for array, columns in zip(maps, widths, strict=True)
        )
        anchors = anchors_of(rule, level, *maps[0].shape[1:])
    scores = sigmoid(logits)
    if 0 < rule.nms_pre < len(scores):
        best = top_rows(scores.max(axis=1), rule.nms_pre)
        anchors, scores, deltas, directions = anchors[best], scores[best], deltas[best], directions[best]
    return (
        decode_deltas(np, anchors, deltas),
        scores,
        (directions[:, 1] > directions[:, 0]).astype(np.float32),
    )


def decode_deltas(xp: ModuleType, anchors: Any, deltas: Any) -> Any:
    """Return boxes (..., n, D), z at the bottom, of anchors (n, D) and deltas (..., n, D)."""
    diagonal = xp.sqrt(anchors[:, 4] ** 2 + anchors[:, 3] ** 2)
    sizes = xp.exp(deltas[..., 3:6]) * anchors[:, 3:6]
    middle = deltas[..., 2] * anchors[:, 5] + (anchors[:, 2] + anchors[:, 5] / 2)
    place = [
        deltas[..., 0] * diagonal + anchors[:, 0],
        deltas[..., 1] * diagonal + anchors[:, 1],
        middle - sizes[..., 2] / 2,
    ]
    return xp.concatenate([xp.stack(place, -1), sizes, anchors[:, 6:] + deltas[..., 6:]], -1)


def turned_yaw(xp: ModuleType, yaw: Any, turned: Any, rule: AnchorRule) -> Any:
    yaw = yaw - rule.dir_offset
    yaw = yaw - xp.floor(yaw / PI + rule.dir_limit_offset) * PI
    return yaw + rule.dir_offset + PI * turned


def suppress(boxes: np.ndarray, scores: np.ndarray, rule: AnchorRule) -> np.ndarray:
    """Return the indices of one class's boxes (n, D) that NMS keeps, best first."""
    if not rule.rotated:
        centres, half_sizes = boxes[:, :2], boxes[:, 3:5] / np.float32(2)
        return nms(np.concatenate([centres - half_sizes, centres + half_sizes], axis=1), scores, rule.nms_thr)
    order = np.argsort(-scores, kind='stable')
    return order[rotated_nms(seen_from_above(boxes[order], rule.box_convention), rule.nms_thr)]
