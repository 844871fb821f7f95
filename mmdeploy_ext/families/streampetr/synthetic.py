"""Synthetic outputs of StreamPETR's head that reach every limit of its decoding.

Glossary: Q queries, K classes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmdeploy_ext.proving.inputs.head_outputs import about_limits, headings, logits, scores_about

LOW = 0.001, 0.05
"""Range of scores of wrong classes; they are distinct, as a model without a threshold keeps some of them."""


def synthetic_outputs(
    facts: Mapping[str, Any], queries: int, classes: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield titles and outputs: `all_cls_scores` (1, 1, Q, K) logits and `all_bbox_preds` (1, 1, Q, 10).

    Args:
        facts: entry `postprocess` of a file's metadata, by which the outputs are decoded.
        queries: Q.
        classes: K.
    """
    rng = np.random.default_rng(0)
    limits = list(map(float, facts['post_center_range']))
    scores = rng.permutation(np.linspace(0.15, 0.98, queries * classes))
    boxes = _boxes(limits, queries, rng)
    yield 'more boxes than are kept', _outputs(logits(scores).reshape(queries, classes), boxes)
    threshold = float(facts.get('score_threshold') or 1.0)
    low, high = LOW[0] * min(threshold, 1.0), min(LOW[1], threshold / 2)
    nothing = logits(rng.permutation(np.linspace(low, high, queries * classes))).reshape(queries, classes)
    few = nothing.copy()
    few[np.arange(queries), rng.integers(0, classes, queries)] = logits(
        scores_about([threshold], queries, rng)
    )
    coordinates = [
        (axis, coordinate) for axis in range(3) for coordinate in about_limits(limits[axis], limits[axis + 3])
    ]
    boxes = _boxes(limits, queries, rng)
    for query, (axis, coordinate) in enumerate(coordinates[:queries]):
        boxes[query, axis] = coordinate
        few[query] = nothing[query]
        few[query, query % classes] = logits(np.float64(0.6 + 0.01 * query))
    yield 'scores and places about their limits', _outputs(few, boxes)
    yield 'nothing', _outputs(nothing, boxes)


def _boxes(limits: list[float], queries: int, rng: np.random.Generator) -> np.ndarray:
    """Return codes (Q, 10) float32 of boxes within limits, some with headings at +-pi."""
    low, high = np.array(limits).reshape(2, 3)
    turn, length = headings(queries, rng), rng.uniform(0.5, 2.0, queries)
    centre = rng.uniform(0.9 * low + 0.1 * high, 0.1 * low + 0.9 * high, (queries, 3))
    columns = centre, rng.uniform(-1, 2, (queries, 3)), np.stack([np.sin(turn), np.cos(turn)], 1)
    boxes = np.concatenate([*columns, rng.uniform(-5, 5, (queries, 2))], 1)
    boxes[:, 6:8] *= length[:, None]  # sine and cosine of a prediction are of any length
    return boxes.astype(np.float32)


def _outputs(scores: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
    return dict(all_cls_scores=scores[None, None], all_bbox_preds=boxes[None, None])
