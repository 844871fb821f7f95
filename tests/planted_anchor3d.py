"""Faults of LiDAR detectors with anchors: pillars, anchors, their deltas, directions and suppression."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from planting import arguments, planted, result, settings, traced

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = 'mmdeploy_ext.families.parts.anchor_heads'
RUNTIME = 'mmdeploy_ext.families.parts.runtime.anchors3d'
RULE, FLAT = f'{HERE}:anchor_rule', f'{HERE}:flat_outputs'
ANCHORS, DECODE = f'{RUNTIME}:anchors_of', f'{RUNTIME}:decode'
ROTATED, UPRIGHT = 'mmdeploy_ext.runtime.bev_nms:rotated_nms', 'mmdeploy_ext.runtime.detections:nms'
PILLARS = 'mmdeploy_ext.families.parts.pillars'
EVERY = 'pillars second mvx'


# ---- the facts that a file keeps

for _name, _toys, _changes in (
    ('score_thr x 2', EVERY, dict(score_thr=lambda value: value * 2)),
    ('nms_thr + 0.05', EVERY, dict(nms_thr=lambda value: value + 0.05)),
    ('max_num one less', EVERY, dict(max_num=lambda value: value - 1)),
    ('max_num one more', EVERY, dict(max_num=lambda value: value + 1)),
    ('max_num is 80 at most', EVERY, dict(max_num=lambda value: min(value, 80))),
    ('nms_pre half', EVERY, dict(nms_pre=lambda value: value // 2)),
    ('nms_pre one less', EVERY, dict(nms_pre=lambda value: value - 1)),
    ('boxes are not turned where they overlap', 'pillars second', dict(rotated=lambda value: not value)),
    ('boxes are turned where they overlap', 'mvx', dict(rotated=lambda value: not value)),
    ('anchors in the middle of cells', 'second', dict(aligned=lambda value: not value)),
    ('anchors from edge to edge', 'pillars mvx', dict(aligned=lambda value: not value)),
    ('anchors at the corner of cells', 'pillars mvx', dict(align_corner=lambda value: not value)),
    ('rotations in the other order', EVERY, dict(rotations=lambda values: values[::-1])),
    (
        'anchors turned by an eighth',
        EVERY,
        dict(rotations=lambda values: tuple(value + np.pi / 4 for value in values)),
    ),
    ('sizes in the other order', EVERY, dict(sizes=lambda values: (*values[3:], *values[:3]))),
    (
        'width and length of anchors',
        EVERY,
        dict(sizes=lambda values: tuple(np.reshape(values, (-1, 3))[:, [1, 0, 2]].ravel().tolist())),
    ),
    (
        'all sizes have the first range',
        'pillars second',
        dict(ranges=lambda values: values[:6] * (len(values) // 6)),
    ),
    ('scales are forgotten', 'mvx', dict(scales=lambda values: (1.0,) * len(values))),
    ('dir_offset is forgotten', 'mvx', dict(dir_offset=lambda value: 0.0)),
    ('dir_offset of the other sign', 'mvx', dict(dir_offset=lambda value: -value)),
    ('dir_limit_offset 0.5', EVERY, dict(dir_limit_offset=lambda value: value + 0.5)),
):
    planted(_name, _toys, (RULE, settings(**_changes)))

planted(
    'max_num is 499 at most',
    EVERY,
    (
        DECODE,
        arguments(
            lambda outputs, rule: (outputs, dataclasses.replace(rule, max_num=min(rule.max_num, 499)))
        ),
    ),
)

# ---- anchors and deltas


def _anchors(change: Callable[[np.ndarray], np.ndarray]) -> tuple[str, Callable]:
    return ANCHORS, result(lambda anchors, *_: change(anchors.copy()))


def _columns(rows: np.ndarray, columns: Any, change: Callable[[np.ndarray], Any]) -> np.ndarray:
    rows[:, columns] = change(rows[:, columns])
    return rows


planted(
    'anchors half a height lower',
    EVERY,
    _anchors(lambda anchors: _columns(anchors, 2, lambda z: z - anchors[:, 5] / 2)),
)
planted(
    'x and y of anchors', EVERY, _anchors(lambda anchors: anchors[:, [1, 0, *range(2, anchors.shape[1])]])
)
planted('anchors of rows from the last', EVERY, _anchors(lambda anchors: _columns(anchors, 1, np.negative)))
planted(
    'anchors of both levels have the first one',
    'mvx',
    (ANCHORS, arguments(lambda rule, level, height, width: (rule, 0, height, width))),
)


def _outputs(name: str, change: Callable[[np.ndarray, Any], np.ndarray]) -> tuple[str, Callable]:
    """Return a fault that reads an output of every level wrongly, of (1, channels, H, W)."""

    def wrong(outputs: Any, rule: Any) -> tuple:
        changed = {key: change(value, rule) for key, value in outputs.items() if key.startswith(name)}
        return {**outputs, **changed}, rule

    return DECODE, arguments(wrong)


def _deltas(change: Callable[[np.ndarray], np.ndarray]) -> tuple[str, Callable]:
    """Return a fault of deltas (D, anchors of a cell, H, W), which a copy is changed of."""

    def wrong(maps: np.ndarray, rule: Any) -> np.ndarray:
        shape = maps.shape
        values = maps.reshape(-1, rule.code_size, *shape[2:]).swapaxes(0, 1).copy()
        return change(values).swapaxes(0, 1).reshape(shape)

    return _outputs('bbox_pred', wrong)


def _scaled(values: np.ndarray, column: int, factor: Any) -> np.ndarray:
    values[column] *= np.float32(factor)
    return values


planted('offsets along x have the other sign', EVERY, _deltas(lambda values: _scaled(values, 0, -1)))
planted('offsets of y and x', EVERY, _deltas(lambda values: values[[1, 0, *range(2, len(values))]]))
planted('offsets of the height are half', EVERY, _deltas(lambda values: _scaled(values, 2, 0.5)))
planted(
    'growth of width and length',
    EVERY,
    _deltas(lambda values: values[[0, 1, 2, 4, 3, *range(5, len(values))]]),
)
planted('turns have the other sign', EVERY, _deltas(lambda values: _scaled(values, 6, -1)))
planted('velocities of y and x', 'mvx', _deltas(lambda values: values[[*range(7), 8, 7]]))
planted('no velocities', 'mvx', _deltas(lambda values: _scaled(values, slice(7, 9), 0)))
planted(
    'growth of e^0.4 at most',
    EVERY,
    _deltas(
        lambda values: np.where(
            (np.arange(len(values)) // 3 == 1)[:, None, None, None], values.clip(max=0.4), values
        )
    ),
)

# ---- scores and directions

planted('directions are the other one', EVERY, _outputs('dir_cls', lambda maps, _: -maps))
planted('directions of the anchor beside', EVERY, _outputs('dir_cls', lambda maps, _: np.roll(maps, 2, 1)))
planted(
    'two bins of a direction follow each other by anchor',
    EVERY,
    _outputs(
        'dir_cls', lambda maps, _: maps.reshape(1, 2, -1, *maps.shape[2:]).swapaxes(1, 2).reshape(maps.shape)
    ),
)
planted(
    'scores are a softmax of the classes',
    EVERY,
    _outputs('cls_score', lambda maps, rule: _softmax(maps, rule)),
)
planted('one class per anchor', EVERY, _outputs('cls_score', lambda maps, rule: _best(maps, rule)))
planted(
    'classes before anchors in the channels',
    EVERY,
    _outputs(
        'cls_score',
        lambda maps, rule: (
            maps.reshape(1, rule.num_classes, -1, *maps.shape[2:]).swapaxes(1, 2).reshape(maps.shape)
        ),
    ),
)


def _of_anchors(maps: np.ndarray, rule: Any) -> np.ndarray:
    return maps.reshape(-1, rule.num_classes, *maps.shape[2:])


def _softmax(maps: np.ndarray, rule: Any) -> np.ndarray:
    logits = _of_anchors(maps, rule)
    powers = np.exp(logits)
    share = powers / (1 + powers.sum(1, keepdims=True))
    return np.log(share / (1 - share)).astype(np.float32).reshape(maps.shape)


def _best(maps: np.ndarray, rule: Any) -> np.ndarray:
    logits = _of_anchors(maps, rule)
    return np.where(logits == logits.max(1, keepdims=True), logits, np.float32(-99)).reshape(maps.shape)


def _yaws(change: Callable[[np.ndarray, Any], np.ndarray]) -> tuple[str, Callable]:
    """Return a fault of the headings of results."""

    def wrong(found: Any, _: Any, rule: Any) -> Any:
        boxes = found.boxes.copy()
        boxes[:, 6] = change(boxes[:, 6], rule)
        return dataclasses.replace(found, boxes=boxes)

    return DECODE, result(wrong)


planted(
    'headings by half a turn alone',
    EVERY,
    _yaws(lambda yaw, rule: (yaw - rule.dir_offset) % np.float32(np.pi) + rule.dir_offset),
)
planted(
    'headings of half a turn have the other sign',
    EVERY,
    _yaws(lambda yaw, _: np.where(np.abs(np.abs(yaw) - np.pi) < 0.011, yaw - np.sign(yaw) * 0.022, yaw)),
)
planted(
    'boxes stand on their centre',
    EVERY,
    (
        DECODE,
        result(
            lambda found, *_: dataclasses.replace(
                found, boxes=found.boxes + found.boxes[:, 5:6] * np.float32([0, 0, 0.5, 0, 0, 0, 0, 0, 0])
            )
        ),
    ),
)

# ---- suppression

planted('a box suppresses those of all classes', EVERY, (DECODE, lambda original: _together(original)))


def _together(original: Callable) -> Callable:
    from mmdeploy_ext.runtime.bev_nms import rotated_nms

    def decode(outputs: Any, rule: Any) -> Any:
        found = original(outputs, rule)
        return found[rotated_nms(found.boxes[:, [0, 1, 3, 4, 6]], rule.nms_thr)]

    return decode


planted(
    'overlaps of boxes that turn the other way',
    'pillars second',
    (ROTATED, arguments(lambda boxes, threshold: (boxes * np.float32([1, 1, 1, 1, -1]), threshold))),
)
planted(
    'overlaps of boxes of the other sides',
    'pillars second',
    (ROTATED, arguments(lambda boxes, threshold: (boxes[:, [0, 1, 3, 2, 4]], threshold))),
)
planted(
    'overlaps count a metre more',
    'mvx',
    (
        UPRIGHT,
        arguments(lambda boxes, scores, threshold: (boxes + np.float32([0, 0, 1, 1]), scores, threshold)),
    ),
)
planted('no suppression', EVERY, (RULE, settings(nms_thr=lambda value: 1.0)))


def _faint(change: Callable[[Any, np.ndarray], Any]) -> tuple[str, Callable]:
    return DECODE, result(lambda found, *_: change(found, found.scores < 0.1))


def _turned(found: Any, rows: np.ndarray) -> Any:
    boxes = found.boxes.copy()
    boxes[rows, 6] += np.float32(np.pi)
    return dataclasses.replace(found, boxes=boxes)


planted('results below 0.1 are dropped', EVERY, _faint(lambda found, rows: found[~rows]))
planted('results below 0.1 are turned by half', EVERY, _faint(_turned))
planted(
    '100 results of 0.9 where nothing is',
    EVERY,
    (
        DECODE,
        result(
            lambda found, *_: (
                found
                if len(found)
                else (
                    type(found)(
                        np.ones((100, 9), np.float32), np.full(100, 0.9, np.float32), np.zeros(100, np.int64)
                    )
                )
            )
        ),
    ),
)

planted(
    'results in the order of x',
    EVERY,
    (DECODE, result(lambda found, *_: found[np.argsort(found.boxes[:, 0], kind='stable')])),
)

# ---- the graphs

planted(
    'deltas and directions of a level have changed places',
    'mvx',
    (
        FLAT,
        result(lambda outputs, *_: (*outputs[:4], outputs[1], outputs[5])),
    ),
)
planted(
    'rows and columns of the map have changed places',
    EVERY,
    (FLAT, traced(result(lambda outputs, *_: tuple(one.transpose(2, 3) for one in outputs)))),
)
planted(
    'the first row of the map is lost',
    'pillars mvx',
    (
        f'{PILLARS}:PillarsOnMap.on_map',
        traced(arguments(lambda self, features, coors: (self, features * (coors[:, 2:3] > 0), coors))),
    ),
)
planted(
    'pillars are put on the map column by column',
    'pillars mvx',
    (
        f'{PILLARS}:PillarsOnMap.on_map',
        traced(arguments(lambda self, features, coors: (self, features, coors[:, [0, 1, 3, 2]]))),
    ),
)


def _forward(change: Callable) -> tuple[str, Callable]:
    return f'{PILLARS}:Pillars.forward', arguments(
        lambda self, voxels, counts, coors: (self, *change(voxels, counts, coors))
    )


planted(
    "points' offsets are from the corner of their pillar",
    'pillars mvx',
    (f'{PILLARS}:Pillars.__init__', lambda original: _moved_origin(original, 0.5)),
)
planted(
    "a pillar's height is that of the ground",
    'pillars mvx',
    _forward(
        lambda voxels, counts, coors: (voxels, counts, coors - torch.tensor([0, 1, 0, 0], dtype=coors.dtype))
    ),
)
planted(
    'the last point of a pillar does not count',
    'pillars mvx',
    _forward(lambda voxels, counts, coors: (voxels, (counts - 1).clamp(min=1), coors)),
)


def _moved_origin(original: Callable, cells: float) -> Callable:
    def init(self: Any, *args: Any) -> None:
        original(self, *args)
        self.origin.sub_(cells * self.size)

    return init


planted(
    'class names are sorted',
    'second',
    ('mmdeploy_ext.exporting.model:class_names', result(lambda names, *_: tuple(sorted(names)))),
    shared=True,
)
planted(
    'the last class name comes first',
    'pillars mvx',
    ('mmdeploy_ext.exporting.model:class_names', result(lambda names, *_: (names[-1], *names[:-1]))),
    shared=True,
)
