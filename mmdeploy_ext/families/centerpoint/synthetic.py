"""Synthetic outputs of CenterPoint's head for the limits of its decoding.

The outputs are those that `runtime.decode` takes: the maps `BoxRule.output_names`, as a head always has them,
float32. What they reach depends on the rule: with a score threshold above 0.98 the first three outputs give
no box. Nothing here checks that a limit is reached; `proving/levels/synthetic.py` compares the boxes of
both engines.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.families.centerpoint.runtime import BoxRule
from mmdeploy_ext.proving.inputs.head_outputs import (
    HIGH,
    about_limits,
    clear_size,
    headings,
    logits,
    scores_about,
)

EMPTY_LOGIT = -20.0
"""Logit of a cell without an object."""
SMALL, OFFSET = 0.2, 0.005
"""Sides of boxes that overlap no other box, and distances of centres from those of cells, in cells."""
LOG_HEIGHT = 3.5
"""Largest logarithm of the height of a box, m; no suppression looks at heights."""
MAX_BOXES_ABOUT_LIMITS = 60
"""Largest number of boxes of a task with scores or centres about their limits."""


def synthetic_outputs(rule: BoxRule, spec: GraphSpec) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield titles and outputs of the head, by the names of its file, for a model that decodes by a rule.

    `spec` is the contract of the head's file.
    """
    rng = np.random.default_rng(0)
    shapes = {tensor.name: tuple(tensor.axes) for tensor in spec.outputs}
    sides = {  # of boxes, in cells; None makes boxes that overlap those of neighbouring cells
        'more boxes than are kept': SMALL,
        'more candidates than are compared': None,
        'all classes in a cell': SMALL,
    }
    for title, side in sides.items():
        outputs = {}
        for task in range(len(rule.num_classes)):
            classes, height, width = shapes[f'heatmap_{task}'][1:]
            cells = classes * height * width
            ranks = rng.permutation(cells)
            if title == 'all classes in a cell':  # classes of a cell have successive ranks, from any class on
                turns = np.arange(classes)[:, None] + rng.integers(0, classes, height * width)
                ranks = (classes * rng.permutation(height * width) + turns % classes).ravel()
            scores = np.linspace(0.2, 0.98, cells)[ranks]
            cell = np.float32(rule.voxel_size[0]) * rule.out_size_factor
            side_in_cells = clear_size(rule.nms_thr) if side is None else side
            maps = _maps(rule, shapes, task, side_in_cells * cell, rng)
            if side is None:  # a turn would make other overlaps
                maps[f'rot_{task}'] = np.zeros_like(maps[f'rot_{task}'])
                maps[f'rot_{task}'][:, 1] = 1
            maps[f'heatmap_{task}'] = logits(scores).reshape(shapes[f'heatmap_{task}'])
            outputs |= maps
        yield title, outputs
    for title in ('scores', 'places'):
        maps = _about_limits(rule, shapes, of_places=title == 'places', rng=rng)
        yield f'{title} about their limits', maps
    nothing = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    nothing |= {name: array + EMPTY_LOGIT for name, array in nothing.items() if name.startswith('heatmap')}
    yield 'nothing', {name: array.astype(np.float32) for name, array in nothing.items()}


def _maps(
    rule: BoxRule, shapes: Mapping[str, Any], task: int, side: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the maps of a task except its heat map.

    Each cell has a box with this side in m and of any height, at the centre of the cell; together they have
    all headings.
    """
    plane = shapes[f'heatmap_{task}'][2:]
    count = int(np.prod(plane))
    turn, length = headings(count, rng), rng.uniform(0.5, 2.0, count)
    low, high = np.float32(rule.post_center_range[2]), np.float32(rule.post_center_range[5])
    sides = np.full((2, count), np.log(side) if rule.norm_bbox else side)
    log_heights = rng.uniform(-LOG_HEIGHT, LOG_HEIGHT, (1, count))
    values = dict(
        reg=0.5 + rng.uniform(-OFFSET, OFFSET, (2, count)),
        height=rng.uniform(0.9 * low + 0.1 * high, 0.1 * low + 0.9 * high, (1, count)),
        dim=np.concatenate([sides, log_heights if rule.norm_bbox else np.exp(log_heights)]),
        rot=np.stack([np.sin(turn), np.cos(turn)]) * length,
        vel=rng.uniform(-5, 5, (2, count)),
    )
    return {
        f'{name}_{task}': array.reshape(1, -1, *plane).astype(np.float32)
        for name, array in values.items()
        if f'{name}_{task}' in shapes
    }


def _about_limits(
    rule: BoxRule, shapes: Mapping[str, Any], of_places: bool, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return few small boxes, all of which are kept, with scores or centres on both sides of their limits.

    If fewer boxes are kept than there are limits, those of the first axes have some.
    """
    outputs = {}
    step = np.float32(rule.voxel_size) * rule.out_size_factor
    counts = (MAX_BOXES_ABOUT_LIMITS, rule.max_num, rule.post_max_size, rule.pre_max_size)
    num_boxes = min(count for count in counts if count)
    ranges = dict.fromkeys([rule.post_center_range, rule.post_center_limit_range or rule.post_center_range])
    coordinates = [
        (axis, coordinate)
        for limits in ranges
        for axis in range(3)
        for coordinate in about_limits(limits[axis], limits[axis + 3])
    ]
    for task in range(len(rule.num_classes)):
        _, height, width = shapes[f'heatmap_{task}'][1:]
        maps = _maps(rule, shapes, task, SMALL * float(step[0]), rng)
        rows, columns = (axis.ravel() for axis in np.mgrid[1:height:2, 1:width:2])
        order = rng.permutation(len(rows))[:num_boxes]
        rows, columns = rows[order], columns[order]
        heat = np.full(shapes[f'heatmap_{task}'], EMPTY_LOGIT, np.float32)
        thresholds = {rule.score_threshold or 0.0, rule.nms_score_threshold}
        scores = scores_about(sorted(thresholds), len(rows), rng)
        heat[0, 0, rows, columns] = logits(np.linspace(*HIGH, len(rows)) if of_places else scores)
        cells = zip(rows, columns, coordinates, strict=False) if of_places else ()
        for row, column, (axis, coordinate) in cells:
            if axis == 2:
                maps[f'height_{task}'][0, 0, row, column] = coordinate
            else:
                cell = column if axis == 0 else row
                offset = (coordinate - rule.pc_origin[axis]) / step[axis] - cell
                maps[f'reg_{task}'][0, axis, row, column] = offset
        outputs |= {**maps, f'heatmap_{task}': heat}
    return outputs
