"""Synthetic boxes of BEVFusion's frame graph that reach the limits of what follows it.

Glossary: Q boxes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.proof.inputs.head_outputs import HIGH, clear_size

NEAR = 0.65
"""Of a radius: boxes beside each other, and at a corner of each other, are nearer than it; others are not."""
UNIT_M = 0.5
"""Cell of the grid on which rotated boxes are, metres."""
APART = 40
"""Times as far from each other: nothing is suppressed but by number."""
OTHER_SIZE_M = 1.0
"""Side of boxes that nothing suppresses."""


def synthetic_outputs(
    nms: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, classes: int, count: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield titles and outputs of the frame's graph with `count` boxes, by the suppression of the file."""
    groups = (
        [dict(nms, classes=[label]) for label in nms['classes']] if isinstance(nms, Mapping) else nms or ()
    )
    rng = np.random.default_rng(0)
    suppressed = [label for group in groups for label in group['classes']]
    others = [label for label in range(classes) if label not in suppressed][-1:]
    labels = np.resize([*suppressed, *others], count)
    yield 'boxes beside those of other classes', _boxes(groups, rng.permutation(labels), 1, rng)
    for group in groups:
        labels = np.full(count, group['classes'][-1])
        yield f'boxes of class {labels[0]} alone', _boxes(groups, labels, 1, rng)
        yield f'boxes of class {labels[0]} far apart', _boxes(groups, labels, APART, rng)


def _boxes(
    groups: Sequence[Mapping[str, Any]], labels: np.ndarray, apart: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return boxes (Q, 9), columns of the graph, on a grid; scores in no order, and a few without a label."""
    count, boxes = len(labels), np.zeros((len(labels), 9))
    rows = rng.permutation(count)
    side = int(np.ceil(np.sqrt(count)))
    for row, label in enumerate(labels):
        group = next((group for group in groups if label in group['classes']), {})
        step = size = OTHER_SIZE_M
        if 'radius' in group:
            step = NEAR * np.sqrt(group['radius'])
        elif group:
            scale = group['scales'][group['classes'].index(label)]
            step, size = UNIT_M, UNIT_M * clear_size(group['overlap']) / scale
        boxes[row, :2] = np.array([rows[row] // side, rows[row] % side]) * step * apart
        boxes[row, 3:5] = size
        if 'overlap' not in group:
            boxes[row, 6] = rng.uniform(-3.0, 1.5)  # the same heading in both kinds of columns
    boxes[:, 2] = rng.uniform(-2, 1, count)
    boxes[:, 5] = rng.uniform(0.5, 2, count)
    boxes[:, 7:] = rng.uniform(-5, 5, (count, 2))
    return dict(
        boxes=boxes.astype(np.float32),
        scores=rng.permutation(np.linspace(*HIGH, count)).astype(np.float32),
        labels=np.where(rng.random(count) < 0.1, -1, labels).astype(np.int64),
    )
