"""Synthetic outputs of a head with anchors: more boxes and anchors than it keeps, and scores at its limit.

The outputs are those that `anchors3d.decode` takes. Nothing here checks that a limit is reached.
"""

from collections.abc import Iterator

import numpy as np

from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.families.parts.runtime.anchors3d import AnchorRule, anchors_by_range, anchors_of
from mmdeploy_ext.proving.inputs.head_outputs import clear_size, headings, logits, scores_about

EMPTY_LOGIT = -20.0
"""Logit of an anchor without an object."""
SMALL = 0.2
"""Side, in cells, of boxes that overlap no other box."""
MANY = 200
"""Least number of boxes that are more than are kept, of heads whose ranges have maps of their own."""
HIGH = 3.0
"""Largest delta of the height at which a box is, and of the logarithm of its own."""
HALF_TURNS = 4
"""Largest number of half turns by which boxes are turned on."""
NUM_BOXES_ABOUT_THRESHOLD = 40
"""Largest number of boxes of a level whose scores lie about the threshold; of all ranges with own maps."""


def synthetic_outputs(rule: AnchorRule, spec: GraphSpec) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield titles and outputs of the head, by the names of its file, for a model that decodes by a rule.

    `spec` is the contract of the head's file. If the ranges of a head have maps of their own, no boxes of one
    range overlap.
    """
    rng = np.random.default_rng(0)
    if rule.cells:
        for title, count in (
            ('more boxes than are kept', max(2 * rule.nms_pre, MANY)),
            ('scores about their limit', NUM_BOXES_ABOUT_THRESHOLD),
            ('nothing', 0),
        ):
            yield title, _of_ranges(rule, count, rng)
        return
    shapes = {tensor.name: tuple(tensor.axes) for tensor in spec.outputs}
    for title, side, count in (
        ('more boxes than are kept', SMALL, None),
        ('more candidates than are compared', float(clear_size(rule.nms_thr)), None),
        ('scores about their limit', SMALL, NUM_BOXES_ABOUT_THRESHOLD),
        ('nothing', SMALL, 0),
    ):
        outputs = {}
        for level in range(rule.levels):
            outputs |= _level(rule, shapes, level, side, count, rng)
        yield title, outputs


def _of_ranges(rule: AnchorRule, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the outputs of all anchors of a head whose ranges have maps of their own.

    There are `count` small boxes, or one in each cell if the ranges have fewer cells: each is alone in a cell
    of its range, and of its class. With a count of `NUM_BOXES_ABOUT_THRESHOLD` their scores are about it.
    """
    anchors, rotations = anchors_by_range(rule), len(rule.rotations)
    scores = np.full((len(anchors), rule.num_classes), EMPTY_LOGIT, np.float32)
    sides, labels, first, start = np.ones(len(anchors)), np.zeros(len(anchors), np.int64), [], 0
    for index, (height, width) in enumerate(np.reshape(rule.cells, (-1, 2)).tolist()):
        cells = height * width
        x = np.unique(anchors[start : start + cells, 0])
        sides[start : start + cells] = SMALL * float(np.diff(x).min()) if width > 1 else SMALL
        labels[start : start + cells] = index % rule.num_classes
        first.append(np.arange(start, start + cells))  # of the first rotation
        start += cells * rotations
    rows = rng.permutation(np.concatenate(first))[:count]
    high = np.linspace(max(rule.score_thr, 0.2) + 0.01, 0.98, len(rows))
    if count == NUM_BOXES_ABOUT_THRESHOLD:
        high = scores_about([rule.score_thr], len(rows), rng)
    if len(rows):
        scores[rows, labels[rows]] = logits(rng.permutation(high))
    deltas = np.zeros((len(anchors), rule.code_size), np.float32)
    deltas[:, 3:5] = np.log(sides[:, None] / anchors[:, 3:5])
    deltas[:, [2, 5]] = rng.uniform(-HIGH, HIGH, (len(anchors), 2))
    deltas[:, 6] = np.pi * rng.uniform(-HALF_TURNS, HALF_TURNS, len(anchors)) - anchors[:, 6]
    deltas[:, 7:] = rng.uniform(-5, 5, (len(anchors), rule.code_size - 7))
    directions = np.where(rng.random((len(anchors), 1)) < 0.5, (0.5, -0.5), (-0.5, 0.5))
    maps = dict(cls_score=scores, bbox_pred=deltas, dir_cls_pred=directions)
    return {f'{name}_0': array[None].astype(np.float32) for name, array in maps.items()}


def _level(
    rule: AnchorRule,
    shapes: dict[str, tuple[int, ...]],
    level: int,
    side: float,
    count: int | None,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Return the outputs of a level: boxes with this side in cells, `count` of them.

    If the count is None, each cell has a box, or each anchor, if more candidates than cells are decoded.
    """
    height, width = shapes[f'cls_score_{level}'][2:]
    anchors = anchors_of(rule, level, height, width)
    per_cell = len(anchors) // (height * width)
    scores = np.full((len(anchors), rule.num_classes), EMPTY_LOGIT, np.float32)
    rows = np.arange(height * width) * per_cell + rng.integers(0, per_cell, height * width)
    side_by_side = count is None and side == SMALL and rule.nms_pre > len(rows)
    if side_by_side:  # there are more candidates than cells: all anchors of a cell get boxes
        rows = np.arange(len(anchors))
    if count is None:  # every second row and column: centres of anchors of a cell may be apart
        high = np.linspace(max(rule.score_thr, 0.2) + 0.01, 0.98, len(rows))
        scores[rows, rng.integers(0, rule.num_classes, len(rows))] = logits(rng.permutation(high))
    elif count:
        grid = np.arange(height * width).reshape(height, width)[1::5, 1::5].ravel()
        rows = rows[rng.permutation(grid)[:count]]
        labels = rng.integers(0, rule.num_classes, len(rows))
        scores[rows, labels] = logits(scores_about([rule.score_thr], len(rows), rng))
    cell = float(np.abs(np.diff(np.unique(anchors[:, 0]))).min()) if width > 1 else 1.0
    deltas = np.zeros((len(anchors), rule.code_size), np.float32)
    deltas[:, 3:5] = np.log(side * cell / anchors[:, 3:5])
    if side_by_side:
        deltas[:, 0] = (
            np.arange(len(anchors)) % per_cell * cell / per_cell / np.hypot(anchors[:, 3], anchors[:, 4])
        )
        deltas[:, 3:5] -= np.log(per_cell)
    end = rule.dir_offset - rule.dir_limit_offset * np.pi
    turns = headings(len(anchors), rng, (end, end + np.pi, end - np.pi))
    turns += np.pi * rng.integers(-HALF_TURNS, HALF_TURNS + 1, len(anchors))
    if side > 1:  # a turn would make other overlaps
        turns = np.zeros(len(anchors))
    deltas[:, 6] = turns - anchors[:, 6]
    deltas[:, [2, 5]] = rng.uniform(-HIGH, HIGH, (len(anchors), 2))
    deltas[:, 7:] = rng.uniform(-5, 5, (len(anchors), rule.code_size - 7))
    directions = rng.uniform(0.5, 3.0, (len(anchors), 2)) * np.array([1.0, -1.0])
    directions[rng.random(len(anchors)) < 0.5] *= -1
    maps = dict(cls_score=scores, bbox_pred=deltas, dir_cls_pred=directions)
    return {
        f'{name}_{level}': np.ascontiguousarray(
            array.reshape(height, width, -1).transpose(2, 0, 1)[None], np.float32
        )
        for name, array in maps.items()
    }
