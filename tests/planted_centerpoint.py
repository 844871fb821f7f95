"""Faults of CenterPoint: its dense graph, and decoding."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from planting import arguments, planted, result, settings, traced

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = 'mmdeploy_ext.families.parts'
HERE, RUNTIME = 'mmdeploy_ext.families.centerpoint', 'mmdeploy_ext.families.centerpoint.runtime'
RULE, HEAD, FLAT = (
    f'{HERE}.graphs:box_rule',
    f'{PARTS}.lidar_graphs:DenseHead.forward',
    f'{HERE}.graphs:flat_outputs',
)
DECODE, TASK, SUPPRESS = (f'{RUNTIME}:{name}' for name in ('decode', 'task_boxes', 'suppress'))
CIRCLES, ROTATED = (f'mmdeploy_ext.runtime.bev_nms:{name}_nms' for name in ('circle', 'rotated'))
TOY, CIRCLE = 'centerpoint_rotate', 'centerpoint_circle'
BOTH = f'{TOY} {CIRCLE}'


# ---- the facts that a file keeps

planted('score threshold x 1.02', TOY, (RULE, settings(score_threshold=lambda value: value * 1.02)))
planted('the second score threshold x 2', TOY, (RULE, settings(nms_score_threshold=lambda value: value * 2)))
planted('IoU threshold + 0.05', TOY, (RULE, settings(nms_thr=lambda value: value + 0.05)))
planted('post_max_size one less', BOTH, (RULE, settings(post_max_size=lambda value: value - 1)))
planted('post_max_size one more', BOTH, (RULE, settings(post_max_size=lambda value: value + 1)))
planted('pre_max_size ten less', TOY, (RULE, settings(pre_max_size=lambda value: value - 10)))
planted('max_num half', BOTH, (RULE, settings(max_num=lambda value: value // 2)))
planted('at most 80 peaks', BOTH, (RULE, settings(max_num=lambda value: min(value, 80))))
planted(
    'at most 499 peaks',
    BOTH,
    (TASK, arguments(lambda named, rule: (named, dataclasses.replace(rule, max_num=min(rule.max_num, 499))))),
)
planted('the voxel size of x along y', TOY, (RULE, settings(voxel_size=lambda size: (size[0], size[0]))))
planted('the corner of x along y', TOY, (RULE, settings(pc_origin=lambda low: (low[0], low[0]))))
planted('out_size_factor of the backbone', TOY, (RULE, settings(out_size_factor=lambda value: value * 2)))
planted('sizes are no logarithms', TOY, (RULE, settings(norm_bbox=lambda value: not value)))
planted(
    'the range after NMS is that before it',
    TOY,
    (
        RULE,
        result(lambda rule, *_: dataclasses.replace(rule, post_center_limit_range=rule.post_center_range)),
    ),
)
planted(
    'the range before NMS ends at any height',
    CIRCLE,
    (RULE, settings(post_center_range=lambda limits: (*limits[:2], -99.0, *limits[3:5], 99.0))),
)
planted(
    'radii in the order of the tasks from the last',
    CIRCLE,
    (RULE, settings(min_radius=lambda radii: radii[::-1])),
)
planted(
    'radii are squared',
    CIRCLE,
    (RULE, settings(min_radius=lambda radii: tuple(radius**2 for radius in radii))),
)

# ---- the dense graph

planted(
    'heat maps rounded to float16',
    TOY,
    (HEAD, result(lambda outputs, *_: (*outputs[:-1], outputs[-1].half().float()))),
)
planted(
    'the map ends a cell early',
    TOY,
    (HEAD, arguments(lambda self, bev: (self, bev * (torch.arange(bev.shape[3]) < bev.shape[3] - 1)))),
)
planted(
    'rows and columns of the map have changed places',
    TOY,
    (
        FLAT,
        traced(result(lambda outputs, *_: tuple(one.transpose(2, 3).reshape(one.shape) for one in outputs))),
    ),
)
planted(
    'heat maps are scores', TOY, (HEAD, result(lambda outputs, *_: (*outputs[:-1], outputs[-1].sigmoid())))
)
planted(
    'the last task has the heights of the first',
    TOY,
    (FLAT, traced(result(lambda outputs, *_: (*outputs[:7], outputs[1], *outputs[8:])))),
)
planted(
    'reg and vel of a task have changed places',
    TOY,
    (FLAT, result(lambda outputs, *_: (outputs[4], *outputs[1:4], outputs[0], *outputs[5:]))),
)

# ---- decoding


def _outputs(name: str, change: Callable) -> tuple[str, Callable]:
    """Return a fault that reads an output of a task wrongly."""
    return TASK, arguments(lambda named, rule: ({**named, name: change(named[name])}, rule))


def _boxes(change: Callable) -> tuple[str, Callable]:
    return DECODE, result(lambda found, *_: dataclasses.replace(found, boxes=change(found.boxes)))


planted('yaw of cosine and sine', TOY, _outputs('rot', lambda rot: rot[:, ::-1]))
planted('the yaw turns the other way', TOY, _outputs('rot', lambda rot: rot * np.float32([[[[-1]], [[1]]]])))
planted(
    'yaws of the left half-plane are turned',
    TOY,
    _outputs('rot', lambda rot: rot * np.where(rot[:, 1:] < 0, np.float32(-1), np.float32(1))),
)
planted('no offsets of the centre', TOY, _outputs('reg', lambda reg: reg * 0))
planted('offsets of y and x', TOY, _outputs('reg', lambda reg: reg[:, ::-1]))
planted('centres a half cell off', TOY, _outputs('reg', lambda reg: reg + np.float32(0.5)))
planted('width and length have changed places', TOY, _outputs('dim', lambda dim: dim[:, [1, 0, 2]]))
planted('velocities of y and x', TOY, _outputs('vel', lambda vel: vel[:, ::-1]))
planted('no velocities', TOY, _outputs('vel', lambda vel: vel * 0))
planted(
    'boxes stand on their centre',
    TOY,
    _boxes(lambda boxes: boxes + boxes[:, 5:6] * np.float32([0, 0, 0.5, 0, 0, 0, 0, 0, 0])),
)
planted(
    'headings of half a turn have the other sign',
    TOY,
    _boxes(lambda boxes: np.where(np.arange(9) == 6, boxes.clip(-3.13, 3.13), boxes)),
)
planted(
    'a score for each cell, not for each class',
    TOY,
    _outputs('heatmap', lambda heat: np.where(heat == heat.max(1, keepdims=True), heat, np.float32(-99))),
)
planted('peaks are the largest of their neighbours', TOY, _outputs('heatmap', lambda heat: _peaks(heat)))


def _peaks(heat: np.ndarray) -> np.ndarray:
    maps = torch.from_numpy(np.ascontiguousarray(heat))
    largest = torch.nn.functional.max_pool2d(maps, 3, stride=1, padding=1)
    return torch.where(maps == largest, maps, -99.0).numpy()


planted(
    'labels begin at 0 in each task',
    BOTH,
    (
        SUPPRESS,
        result(
            lambda found, _, task, rule: dataclasses.replace(
                found, labels=found.labels - sum(rule.num_classes[:task])
            )
        ),
    ),
)
planted('suppression of each class alone', BOTH, (SUPPRESS, lambda original: _by_class(original)))


def _by_class(original: Callable) -> Callable:
    def suppress(found: Any, task: int, rule: Any) -> Any:
        parts = [
            original(found[found.labels == label], task, rule) for label in range(rule.num_classes[task])
        ]
        return type(found)(
            *(
                np.concatenate([getattr(part, field.name) for part in parts])
                for field in dataclasses.fields(found)
            )
        )

    return suppress


planted(
    'suppression of boxes that are not turned',
    TOY,
    (ROTATED, arguments(lambda boxes, threshold: (boxes * np.float32([1, 1, 1, 1, 0]), threshold))),
)
planted(
    'suppression by the overlap of each size alone',
    TOY,
    (ROTATED, arguments(lambda boxes, threshold: (boxes[:, [0, 1, 3, 2, 4]], threshold))),
)
planted(
    'no suppression',
    BOTH,
    (
        SUPPRESS,
        lambda original: (
            lambda found, task, rule: original(
                found, task, dataclasses.replace(rule, nms_thr=1.0, min_radius=(-1.0,) * 9)
            )
        ),
    ),
)
planted(
    'suppression by places that count as integers',
    CIRCLE,
    (CIRCLES, arguments(lambda centres, radius: (np.rint(centres), radius))),
)
planted('a radius is no square', CIRCLE, (CIRCLES, arguments(lambda centres, radius: (centres, radius**2))))
planted('results below 0.1 are dropped', BOTH, (DECODE, result(lambda found, *_: found[found.scores >= 0.1])))
planted(
    'results in the order of x',
    BOTH,
    (DECODE, result(lambda found, *_: found[np.argsort(found.boxes[:, 0], kind='stable')])),
)
planted('results below 0.1 are turned by half', BOTH, (DECODE, result(lambda found, *_: _turned(found))))
planted(
    '100 results of 0.9 where nothing is',
    BOTH,
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


def _turned(found: Any) -> Any:
    boxes, faint = found.boxes.copy(), found.scores < 0.1
    boxes[faint, 6] += np.float32(np.pi)
    boxes[faint, 7:] *= -1
    return dataclasses.replace(found, boxes=boxes)


planted(
    'class names are sorted',
    TOY,
    (
        'mmdeploy_ext.exporting.model:class_names',
        result(lambda names, *_: tuple(sorted(names, reverse=True))),
    ),
    shared=True,
)
planted(
    "the first task's class names come last",
    TOY,
    ('mmdeploy_ext.exporting.model:class_names', result(lambda names, *_: (*names[1:], names[0]))),
    shared=True,
)
