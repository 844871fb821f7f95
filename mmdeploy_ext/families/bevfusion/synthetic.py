"""Synthetic boxes of BEVFusion's frame graph that reach the limits of the suppression behind it.

Glossary: Q boxes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.proving.inputs.head_outputs import HIGH, clear_size

STEP_OF_RADIUS = 0.65
"""Step of the grid of boxes in radii: neighbours, also diagonal ones, are nearer than a radius."""
STEP_M = 0.5
"""Step of the grid of rotated boxes, metres."""
SPREAD = 40
"""Factor on the step with which no box is near enough to another to be suppressed; those beyond the largest
number of results are dropped all the same."""
SPREAD_IN_RANGE = 5
"""The same factor for boxes that have to stay in the range of a coder."""
CENTRES_M = 5
"""Largest distance of the centres of boxes of all sizes from the LiDAR along x and y, metres."""
OUT_OF_RANGE_M = 1e3
"""What is added to the height of boxes that a coder has to drop, metres."""
SIZES_M = 0.2, 15.0
"""Range of sizes of boxes of all sizes, from a cone to a long bus."""
SCORES = 0.02, 0.99
"""Range of scores of boxes of all sizes."""
UNSUPPRESSED_SIZE_M = 1.0
"""Metres: sides of boxes that no overlap suppresses, and step of their grid if no radius does either."""


def synthetic_outputs(
    nms: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
    classes: int,
    count: int,
    spread: int = SPREAD,
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield titles and outputs of the frame's graph: `boxes` (Q, 9), `scores` (Q,) and `labels` (Q,).

    Boxes are x, y, z of the middle of the bottom, w, l, h, yaw from -y clockwise, and velocity.

    The first have boxes beside each other, of all suppressed classes and of the last one without suppression,
    if there is one; then come for each group of suppressed classes those of its last class, beside each other
    and far apart.
    About a tenth of the labels are -1, which drops the box.

    Args:
        nms: suppression of the file: a list of groups of classes, or one dict for a group of each of its
            `classes`, see `runtime.boxes.suppress`; None of a head without one.
        classes: number of classes.
        count: Q.
        spread: distances of boxes far apart, in distances of boxes beside each other.
    """
    groups = (
        [dict(nms, classes=[label]) for label in nms['classes']] if isinstance(nms, Mapping) else nms or ()
    )
    rng = np.random.default_rng(0)
    suppressed = [label for group in groups for label in group['classes']]
    other_labels = [label for label in range(classes) if label not in suppressed][-1:]
    labels = np.resize([*suppressed, *other_labels], count)
    yield 'boxes beside those of other classes', _boxes(groups, rng.permutation(labels), 1, rng)
    for group in groups:
        labels = np.full(count, group['classes'][-1])
        yield f'boxes of class {labels[0]} alone', _boxes(groups, labels, 1, rng)
        yield f'boxes of class {labels[0]} far apart', _boxes(groups, labels, spread, rng)


def boxes_of_all_sizes(classes: int, count: int) -> dict[str, np.ndarray]:
    """Return outputs of the frame's graph by name: `count` boxes of all sizes, classes and scores.

    Boxes have the columns of `synthetic_outputs`, and any yaw from -3 to 1.5. `classes` is the number of
    classes. No box has the label -1, which would drop it.
    """
    rng = np.random.default_rng(1)
    boxes = np.zeros((count, 9))
    boxes[:, :2] = rng.uniform(-CENTRES_M, CENTRES_M, (count, 2))
    boxes[:, 2] = rng.uniform(-2, 1, count)
    boxes[:, 3:6] = np.exp(rng.uniform(*np.log(SIZES_M), (count, 3)))
    boxes[:, 6] = rng.uniform(-3.0, 1.5, count)  # the node's, -heading - pi / 2, is within pi, too
    boxes[:, 7:] = rng.uniform(-20, 20, (count, 2))
    return dict(
        boxes=boxes.astype(np.float32),
        scores=rng.permutation(np.linspace(*SCORES, count)).astype(np.float32),
        labels=np.resize(np.arange(classes), count),
    )


def values_of_boxes(
    outputs: Mapping[str, np.ndarray], coder: Any, classes: int, of_node: bool
) -> dict[str, np.ndarray]:
    """Return outputs of a head, by name, for boxes of the frame's graph; `reference.head_values` takes them.

    A box with the label -1 is put far above the range of the coder, which then drops it. The node's outputs
    are `bbox_pred` (10, Q), `score` (Q,) and `label_pred` (Q,), those of CUDA-BEVFusion's head (1, columns,
    Q), with a column of `score` per class.

    Args:
        outputs: `boxes` (Q, 9), `scores` and `labels` of the frame's graph, see `synthetic_outputs`.
        coder: box coder of the head.
        classes: number of classes.
        of_node: return the outputs of Autoware's node, not those of CUDA-BEVFusion's head.
    """
    boxes, scores = outputs['boxes'].astype(np.float64), outputs['scores']
    dropped, labels = outputs['labels'] < 0, outputs['labels'].clip(min=0)
    step, low = (np.array(values[:2]) for values in (coder.voxel_size, coder.pc_range))
    centres = (boxes[:, :2] - low) / (step * coder.out_size_factor)
    middle = boxes[:, 2] + boxes[:, 5] / 2 + np.where(dropped, OUT_OF_RANGE_M, 0.0)
    sizes, sine, cosine = np.log(boxes[:, 3:6]), np.sin(boxes[:, 6]), np.cos(boxes[:, 6])
    if of_node:
        columns = [*centres.T, middle, *sizes[:, [1, 0, 2]].T, -cosine, -sine, *boxes[:, 7:].T]
        return dict(bbox_pred=np.stack(columns).astype(np.float32), score=scores, label_pred=labels)
    values = dict(rot=[sine, cosine], dim=sizes.T, reg=centres.T, height=[middle], vel=boxes[:, 7:].T)
    score = np.eye(classes, dtype=np.float32)[labels].T * scores
    return dict(score=score[None], **{name: np.float32(rows)[None] for name, rows in values.items()})


def _boxes(
    groups: Sequence[Mapping[str, Any]], labels: np.ndarray, spread: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return outputs of the graph: boxes (Q, 9) on a grid, with shuffled scores, a few with the label -1."""
    count, boxes = len(labels), np.zeros((len(labels), 9))
    rows = rng.permutation(count)
    side = int(np.ceil(np.sqrt(count)))
    for row, label in enumerate(labels):
        group = next((group for group in groups if label in group['classes']), {})
        step = size = UNSUPPRESSED_SIZE_M
        if 'radius' in group:
            step = STEP_OF_RADIUS * np.sqrt(group['radius'])
        elif group:
            scale = group['scales'][group['classes'].index(label)]
            step, size = STEP_M, STEP_M * clear_size(group['overlap']) / scale
        boxes[row, :2] = np.array([rows[row] // side, rows[row] % side]) * step * spread
        boxes[row, 3:5] = size
        if 'overlap' not in group:
            boxes[row, 6] = rng.uniform(-3.0, 1.5)  # the node's, -heading - pi / 2, is within pi, too
    boxes[:, 2] = rng.uniform(-2, 1, count)
    boxes[:, 5] = rng.uniform(0.5, 2, count)
    boxes[:, 7:] = rng.uniform(-5, 5, (count, 2))
    return dict(
        boxes=boxes.astype(np.float32),
        scores=rng.permutation(np.linspace(*HIGH, count)).astype(np.float32),
        labels=np.where(rng.random(count) < 0.1, -1, labels).astype(np.int64),
    )
