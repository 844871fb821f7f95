"""Boxes of anchors in 3D without PyTorch: anchors, their deltas, NMS of each class from above, directions.

Source: mmdet3d 1.0.0rc6, models/dense_heads/{anchor3d,shape_aware}_head.py `get_bboxes_single`, core/anchor/
anchor_3d_generator.py, core/bbox/coders/delta_xyzwhlr_bbox_coder.py, core/post_processing/box3d_nms.py.

Glossary: L levels, A anchors of a cell, C classes, D values of a box (7, or 9 with a velocity), n boxes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mmdeploy_ext.runtime.bev_nms import rotated_nms
from mmdeploy_ext.runtime.detections import nms, sigmoid
from mmdeploy_ext.runtime.detections3d import Detections3D, HeadRule

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays

OUTPUTS = ('cls_score', 'bbox_pred', 'dir_cls_pred')
"""Of each level: `cls_score_0`, `bbox_pred_0`, `dir_cls_pred_0`, `cls_score_1`, ..."""
PI = np.float32(np.pi)


@dataclasses.dataclass(frozen=True)
class AnchorRule(HeadRule):
    """What turns the head's outputs into boxes; `num_classes` is C, `code_size` D, `levels` L.

    Attributes:
        aligned: anchors lie in the middle of cells, not from edge to edge of their range.
        align_corner: aligned anchors lie at the corner of cells.
        ranges: six numbers of each range, metres, one after the other.
        sizes: three numbers of each anchor, metres, one after the other.
        rotations: radians.
        scales: of the sizes, per level.
        size_per_range: each range has one size; otherwise the first range has all.
        dir_offset: radians.
        dir_limit_offset: of a half turn.
        nms_pre: anchors of a level that are looked at; 0 or less takes all.
        score_thr: scores have to be above it.
        nms_thr: largest IoU from above.
        rotated: boxes are turned when their IoU is computed.
        max_num: boxes that come out.
        cells: rows and columns of the map of each range, one after the other, where each has its own (SSN's
            head, whose outputs hold all anchors, range by range); empty: all have the map of their level.
    """

    limit: ClassVar[str] = 'max_num'
    """Name of the number of results that are kept at most."""
    candidates: ClassVar[tuple[str, ...]] = ('nms_pre',)
    """Names of the numbers of boxes that are looked at."""

    num_classes: int
    code_size: int
    levels: int
    aligned: bool
    align_corner: bool
    ranges: tuple[float, ...]
    sizes: tuple[float, ...]
    rotations: tuple[float, ...]
    scales: tuple[float, ...]
    size_per_range: bool
    dir_offset: float
    dir_limit_offset: float
    nms_pre: int
    score_thr: float
    nms_thr: float
    rotated: bool
    max_num: int
    cells: tuple[int, ...] = ()

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the head's outputs."""
        return tuple(f'{name}_{level}' for level in range(self.levels) for name in OUTPUTS)

    @property
    def output_axes(self) -> dict[str, tuple[int | None, ...]]:
        """The outputs that `decode` takes, see `HeadRule.output_axes`."""
        columns = self.num_classes, self.code_size, 2
        if self.cells:
            maps = np.reshape(self.cells, (-1, 2)).tolist()
            anchors = sum(rows * width for rows, width in maps) * len(self.rotations)
            return {f'{name}_0': (None, anchors, size) for name, size in zip(OUTPUTS, columns, strict=True)}
        sizes = len(self.ranges) // 6 if self.size_per_range else len(self.sizes) // 3
        anchors = sizes * len(self.rotations)
        return {
            f'{name}_{level}': (None, anchors * size, None, None)
            for level in range(self.levels)
            for name, size in zip(OUTPUTS, columns, strict=True)
        }

    def groups(self, labels: np.ndarray) -> np.ndarray:
        """Return (n,) zeros: `limit` is for the results of all labels (n,) together."""
        return np.zeros(len(labels), np.int64)


def anchors_of(rule: AnchorRule, level: int, height: int, width: int) -> np.ndarray:
    """Return the anchors of a level (height * width * A, D) float32, cell by cell, row by row."""
    ranges = np.float32(rule.ranges).reshape(-1, 6)
    sizes = np.float32(rule.sizes).reshape(-1, 3) * np.float32(rule.scales[level])
    pairs = zip(ranges, sizes[:, None], strict=True) if rule.size_per_range else [(ranges[0], sizes)]
    blocks = [_block(rule, limits, own, height, width) for limits, own in pairs]
    return np.concatenate(blocks, axis=2).reshape(-1, rule.code_size)


def anchors_by_range(rule: AnchorRule) -> np.ndarray:
    """Return the anchors of all ranges (n, D) float32, range by range, rotation by rotation, row by row."""
    ranges = np.float32(rule.ranges).reshape(-1, 6)
    sizes = np.float32(rule.sizes).reshape(-1, 1, 3) * np.float32(rule.scales[0])
    maps = zip(ranges, sizes, np.reshape(rule.cells, (-1, 2)).tolist(), strict=True)
    blocks = [_block(rule, limits, own, *cells) for limits, own, cells in maps]
    return np.concatenate([block.transpose(2, 3, 0, 1, 4).reshape(-1, rule.code_size) for block in blocks])


def _block(rule: AnchorRule, limits: np.ndarray, sizes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the anchors of a range (height, width, sizes, rotations, D) float32."""
    (z,), y, x = (
        _centres(rule, limits[axis], limits[axis + 3], count)
        for axis, count in ((2, 1), (1, height), (0, width))
    )
    block = np.zeros((height, width, len(sizes), len(rule.rotations), rule.code_size), np.float32)
    block[..., 0], block[..., 1], block[..., 2] = x[:, None, None], y[:, None, None, None], z
    block[..., 3:6], block[..., 6] = sizes[:, None], np.float32(rule.rotations)
    return block


def _centres(rule: AnchorRule, low: float, high: float, count: int) -> np.ndarray:
    if not rule.aligned:
        return np.linspace(low, high, count, dtype=np.float32)
    edges = np.linspace(low, high, count + 1, dtype=np.float32)
    return edges[:count] + (0 if rule.align_corner else (edges[1] - edges[0]) / np.float32(2))


def decode(outputs: Arrays, rule: AnchorRule) -> Detections3D:
    """Decode the head's outputs of one sweep, best first; without velocities they are zero.

    These are, per level: `cls_score_l` (1, A * C, H, W) logits, `bbox_pred_l` (1, A * D, H, W),
    `dir_cls_pred_l` (1, A * 2, H, W); with `cells` (1, n, C), (1, n, D), (1, n, 2) of all anchors.
    """
    parts = [_level(outputs, rule, level) for level in range(rule.levels)]
    boxes, scores, turned = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept = []
    for label in range(rule.num_classes):
        candidates = np.flatnonzero(scores[:, label] > np.float32(rule.score_thr))
        rows = candidates[_suppress(boxes[candidates], scores[candidates, label], rule)]
        kept.append(np.stack([rows, np.full_like(rows, label)]))
    row, label = np.concatenate(kept, axis=1)
    order = np.argsort(-scores[row, label], kind='stable')[: rule.max_num]
    row, label = row[order], label[order]
    boxes = np.pad(boxes[row], [(0, 0), (0, 9 - rule.code_size)])
    yaw = boxes[:, 6] - np.float32(rule.dir_offset)
    yaw -= np.floor(yaw / PI + np.float32(rule.dir_limit_offset)) * PI
    boxes[:, 6] = yaw + np.float32(rule.dir_offset) + PI * turned[row]
    return Detections3D(boxes, scores[row, label], label)


def _level(outputs: Arrays, rule: AnchorRule, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (n, D), scores (n, C) and whether boxes of the best anchors are turned by half (n,)."""
    maps = [outputs[f'{name}_{level}'][0] for name in OUTPUTS]
    if rule.cells:
        (scores, deltas, ways), anchors = maps, anchors_by_range(rule)
    else:
        widths = rule.num_classes, rule.code_size, 2
        scores, deltas, ways = (
            one.transpose(1, 2, 0).reshape(-1, columns) for one, columns in zip(maps, widths, strict=True)
        )
        anchors = anchors_of(rule, level, *maps[0].shape[1:])
    scores = sigmoid(scores)
    if 0 < rule.nms_pre < len(scores):
        best = np.argsort(-scores.max(axis=1), kind='stable')[: rule.nms_pre]
        anchors, scores, deltas, ways = anchors[best], scores[best], deltas[best], ways[best]
    return _boxes(anchors, deltas), scores, (ways[:, 1] > ways[:, 0]).astype(np.float32)


def _boxes(anchors: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Return boxes (n, D) float32, z at the bottom, of anchors and their deltas (n, D)."""
    boxes = anchors + deltas
    diagonal = np.sqrt(anchors[:, 4] ** 2 + anchors[:, 3] ** 2)
    boxes[:, 0] = deltas[:, 0] * diagonal + anchors[:, 0]
    boxes[:, 1] = deltas[:, 1] * diagonal + anchors[:, 1]
    boxes[:, 3:6] = np.exp(deltas[:, 3:6]) * anchors[:, 3:6]
    middle = deltas[:, 2] * anchors[:, 5] + (anchors[:, 2] + anchors[:, 5] / np.float32(2))
    boxes[:, 2] = middle - boxes[:, 5] / np.float32(2)
    return boxes


def _suppress(boxes: np.ndarray, scores: np.ndarray, rule: AnchorRule) -> np.ndarray:
    """Return which boxes of a class are kept, best first."""
    if not rule.rotated:
        centre, half = boxes[:, :2], boxes[:, 3:5] / np.float32(2)
        return nms(np.concatenate([centre - half, centre + half], axis=1), scores, rule.nms_thr)
    order = np.argsort(-scores, kind='stable')
    return order[rotated_nms(boxes[order][:, [0, 1, 3, 4, 6]], rule.nms_thr)]
