"""Synthetic outputs of a head with anchors that reach all limits of its decoding.

Glossary: A anchors of a cell, C classes, D values of a box, H, W map, n anchors of a map.
"""

from collections.abc import Iterator

import numpy as np

from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.families.anchor3d.runtime.boxes import AnchorRule, anchors_of
from mmdeploy_ext.proving.inputs.head_outputs import clear_size, headings, logits, scores_about

NOTHING = -20.0
"""Logit of an anchor at which nothing is."""
SMALL = 0.2
"""Of a cell: sides of boxes that overlap no other one."""
FEW = 40
"""Boxes about thresholds."""


def synthetic_outputs(rule: AnchorRule, spec: GraphSpec) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield outputs of the head for a model that decodes by a rule, by the names of its file.

    None of heads whose classes have maps of their own.
    """
    if rule.cells:
        return
    rng = np.random.default_rng(0)
    shapes = {tensor.name: tuple(tensor.axes) for tensor in spec.outputs}
    for title, side, count in (
        ('more boxes than are kept', SMALL, None),
        ('more candidates than are compared', float(clear_size(rule.nms_thr)), None),
        ('scores about their limit', SMALL, FEW),
        ('nothing', SMALL, 0),
    ):
        outputs = {}
        for level in range(rule.levels):
            outputs |= _level(rule, shapes, level, side, count, rng)
        yield title, outputs


def _level(
    rule: AnchorRule,
    shapes: dict[str, tuple[int, ...]],
    level: int,
    side: float,
    count: int | None,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Return the outputs of a level: boxes of a side in cells, one in each cell, or a `count` of them."""
    height, width = shapes[f'cls_score_{level}'][2:]
    anchors = anchors_of(rule, level, height, width)
    own = len(anchors) // (height * width)
    scores = np.full((len(anchors), rule.num_classes), NOTHING, np.float32)
    rows = np.arange(height * width) * own + rng.integers(0, own, height * width)
    spread = count is None and side == SMALL and rule.nms_pre > len(rows)
    if spread:  # more candidates than cells: all anchors, beside each other
        rows = np.arange(len(anchors))
    if count is None:  # every second row and column: centres of anchors of a cell may be apart
        high = np.linspace(max(rule.score_thr, 0.2) + 0.01, 0.98, len(rows))
        scores[rows, rng.integers(0, rule.num_classes, len(rows))] = logits(rng.permutation(high))
    elif count:
        grid = np.arange(height * width).reshape(height, width)[1::5, 1::5].ravel()
        rows_few = rows[rng.permutation(grid)[:count]]
        labels = rng.integers(0, rule.num_classes, len(rows_few))
        scores[rows_few, labels] = logits(scores_about([rule.score_thr], len(rows_few), rng))
    cell = float(np.abs(np.diff(np.unique(anchors[:, 0]))).min()) if width > 1 else 1.0
    deltas = np.zeros((len(anchors), rule.code_size), np.float32)
    deltas[:, 3:5] = np.log(side * cell / anchors[:, 3:5])
    if spread:
        deltas[:, 0] = np.arange(len(anchors)) % own * cell / own / np.hypot(anchors[:, 3], anchors[:, 4])
        deltas[:, 3:5] -= np.log(own)
    end = rule.dir_offset - rule.dir_limit_offset * np.pi
    turns = headings(len(anchors), rng, (end, end + np.pi, end - np.pi))
    if side > 1:  # a turn would make other overlaps
        turns = np.zeros(len(anchors))
    deltas[:, 6] = turns - anchors[:, 6]
    deltas[:, 7:] = rng.uniform(-5, 5, (len(anchors), rule.code_size - 7))
    ways = rng.uniform(0.5, 3.0, (len(anchors), 2)) * np.array([1.0, -1.0])
    ways[rng.random(len(anchors)) < 0.5] *= -1
    maps = dict(cls_score=scores, bbox_pred=deltas, dir_cls_pred=ways)
    return {
        f'{name}_{level}': np.ascontiguousarray(
            array.reshape(height, width, -1).transpose(2, 0, 1)[None], np.float32
        )
        for name, array in maps.items()
    }
