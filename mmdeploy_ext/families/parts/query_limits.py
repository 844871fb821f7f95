"""The limits of decoding queries to boxes without NMS: outputs that reach them, and other limits.

Glossary: Q queries, K classes.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.proving.inputs.head_outputs import about_limits, headings, logits, scores_about

LOW = 0.001, 0.05
"""Range of scores of wrong classes, for a model without a threshold, which keeps some of them: they are
distinct. A threshold multiplies the lower end, and its half is the upper end if that is less."""
OTHER_THRESHOLD = 0.1
"""Score threshold that a proof sets for a model without one; `synthetic_outputs` has scores about it."""
IN_ORDER = range(10)
"""Columns of a box code: x, y, z, logarithms of three sizes, sine and cosine of the yaw, velocity in x, y."""


def synthetic_outputs(
    facts: Mapping[str, Any], queries: int, classes: int, columns: Sequence[int] = IN_ORDER
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield titles and outputs of a head, whose first axes are one decoder layer and a batch of one.

    Outputs are `all_cls_scores` (1, 1, Q, K) logits and `all_bbox_preds` (1, 1, Q, number of `columns`). The
    first have more boxes than are kept; the second scores about the threshold, and centres about the limits
    of `post_center_range`; the third only scores below the threshold, of which a decoder keeps some if it has
    no threshold, or lowers it.

    Args:
        facts: entry `postprocess` of a file's metadata, by which the outputs are decoded.
        queries: Q.
        classes: K.
        columns: for each column of the model's boxes, in order, the column of `IN_ORDER` that it is.
    """

    def outputs(scores: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
        return dict(
            all_cls_scores=scores[None, None],
            all_bbox_preds=np.ascontiguousarray(boxes[:, list(columns)])[None, None],
        )

    rng = np.random.default_rng(0)
    limits = list(map(float, facts['post_center_range']))
    scores = rng.permutation(np.linspace(0.15, 0.98, queries * classes))
    boxes = _boxes(limits, queries, rng)
    yield 'more boxes than are kept', outputs(logits(scores).reshape(queries, classes), boxes)
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
    yield 'scores and places about their limits', outputs(few, boxes)
    yield 'nothing', outputs(nothing, boxes)


def _boxes(limits: list[float], queries: int, rng: np.random.Generator) -> np.ndarray:
    """Return codes (Q, 10) float32 of boxes within limits, some with headings at +-pi."""
    low, high = np.array(limits).reshape(2, 3)
    turn, length = headings(queries, rng), rng.uniform(0.5, 2.0, queries)
    centre = rng.uniform(0.9 * low + 0.1 * high, 0.1 * low + 0.9 * high, (queries, 3))
    columns = centre, rng.uniform(-1, 2, (queries, 3)), np.stack([np.sin(turn), np.cos(turn)], 1)
    boxes = np.concatenate([*columns, rng.uniform(-5, 5, (queries, 2))], 1)
    boxes[:, 6:8] *= length[:, None]  # sine and cosine of a prediction are of any length
    return boxes.astype(np.float32)


def other_limits(
    coder: Any, facts: dict[str, Any], pairs: int
) -> Iterator[tuple[str, contextlib.AbstractContextManager[None]]]:
    """Yield titles and contexts in which model and runner decode with other limits.

    These are fewer and more boxes, and a score threshold for a model without one, or none for others.

    Args:
        coder: the box coder of the model.
        facts: entry `postprocess` of the metadata, which the runner reads.
        pairs: number of (query, class) pairs, Q K.
    """
    max_num, threshold = int(coder.max_num), coder.score_threshold
    for limits in (
        dict(max_num=max(max_num // 2, 1)),
        dict(max_num=min(max_num + max(max_num // 10, 2), pairs)),
        dict(score_threshold=None if threshold else OTHER_THRESHOLD),
    ):
        title = ', '.join(f'{name} {value}' for name, value in limits.items())
        yield title, _with_limits((vars(coder), facts), limits)


@contextlib.contextmanager
def _with_limits(settings: Sequence[dict[str, Any]], limits: Mapping[str, Any]) -> Iterator[None]:
    """Set limits, by name, in the settings of a model and in those of its files while the context lasts."""
    with contextlib.ExitStack() as stack:
        for entries in settings:
            for name, value in limits.items():
                stack.enter_context(replaced_entry(entries, name, value))
        yield
