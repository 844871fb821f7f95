"""Logits and box codes of queries to boxes, without NMS.

Glossary: L decoder layers, R queries, K classes, n boxes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import numpy as np

from mmdeploy_ext.runtime.detections import top_rows
from mmdeploy_ext.runtime.detections3d import Detections3D, in_range
from mmdeploy_ext.runtime.geometry import exact_sigmoid
from mmdeploy_ext.spec.facts import Count, Facts, optional
from mmdeploy_ext.spec.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.spec.tensors import ColumnGroup

PREDICTIONS = ('all_cls_scores', 'all_bbox_preds')
LOWEST_THRESHOLD, LOWERED = 0.01, 0.9
"""A threshold that no score passes is lowered by this factor, down to this limit."""
IN_ORDER, Z_FIFTH = tuple(range(10)), (0, 1, 4, 2, 3, 5, 6, 7, 8, 9)
"""Places in a code of x, y, z, logarithms of three sizes, sine and cosine of the yaw, velocity x, y."""
WIDTH_FIRST = (0, 1, 2, 4, 3, 5, 7, 6, 8, 9)
"""Columns of a code of mmdet3d 0.17 in the order of 1.x; sine and cosine change their signs, too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryBoxFacts(Facts):
    max_num: Count
    post_center_range: tuple[float, float, float, float, float, float]
    score_threshold: float | None
    num_classes: Count
    box_convention: Literal['0.17', '1.x'] = optional('1.x')


def output_specs(
    rows: tuple[int, ...], classes: int, logits: Sequence[ColumnGroup], boxes: Sequence[ColumnGroup]
) -> tuple[TensorSpec, TensorSpec]:
    """Return the specs of the outputs of `decode`, in float32 also in a float16 graph.

    `rows` are the axes (L, 1, R), `classes` is K, `logits` and `boxes` are tolerances of columns.
    """
    of_layers, (logits_name, boxes_name) = 'of all decoder layers', PREDICTIONS
    code = 'x y (m) log w log l z (m, of the centre) log h sin cos (yaw) vx vy (m/s)'
    return (
        TensorSpec(
            logits_name,
            'float32',
            (*rows, classes),
            f'class logits {of_layers}',
            'logit',
            tuple(logits),
            single=True,
        ),
        TensorSpec(
            boxes_name, 'float32', (*rows, 10), f'{code}, {of_layers}', groups=tuple(boxes), single=True
        ),
    )


def passing(scores: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return (n,) bool: scores above the threshold, which is lowered until some pass."""
    if not threshold:
        return np.ones(len(scores), bool)
    keep = scores > threshold
    while not keep.any():
        threshold *= LOWERED
        if threshold < LOWEST_THRESHOLD:
            return np.ones(len(scores), bool)
        keep = scores >= threshold
    return keep


def above(scores: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return (n,) bool: scores above the threshold; all if it is None or 0."""
    return scores > threshold if threshold else np.ones(len(scores), bool)


def at_least(scores: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return (n,) bool: scores that reach the threshold; all if it is None or 0."""
    return scores >= (threshold or 0.0)


def decode(
    cls_scores: np.ndarray,
    bbox_preds: np.ndarray,
    facts: QueryBoxFacts,
    accepts: Callable[[np.ndarray, float | None], np.ndarray] = passing,
    columns: Sequence[int] = Z_FIFTH,
) -> Detections3D:
    """Return the boxes of `decode_rows`."""
    return decode_rows(cls_scores, bbox_preds, facts, accepts, columns)[0]


def decode_rows(
    cls_scores: np.ndarray,
    bbox_preds: np.ndarray,
    facts: QueryBoxFacts,
    accepts: Callable[[np.ndarray, float | None], np.ndarray] = passing,
    columns: Sequence[int] = Z_FIFTH,
) -> tuple[Detections3D, np.ndarray]:
    """Decode the outputs of one frame to boxes of mmdet3d 1.0 in the LiDAR frame, and their queries (n,).

    z is at the bottom of a box.

    Args:
        cls_scores: (L, 1, R, K) logits; the last layer counts.
        bbox_preds: (L, 1, R, 10): x, y, z of the centre in m, logarithms of three sizes, sine and cosine of
            the yaw, velocity x, y in m/s, at `columns`.
        facts: facts of the file.
        accepts: `passing`, `above` or `at_least`.
        columns: `Z_FIFTH` or `IN_ORDER`.

    Source: fundamentalvision/BEVFormer 66b65f3, megvii-research/PETR f7525f9 and exiawsh/StreamPETR 95f6470,
    `get_bboxes` of the heads, core/bbox/coders/nms_free_coder.py.
    """
    scores = exact_sigmoid(cls_scores[-1, 0]).reshape(-1)
    best = top_rows(scores, facts.max_num)
    query, labels = np.divmod(best, cls_scores.shape[-1])
    scores, codes = scores[best], bbox_preds[-1, 0].astype(np.float32)[query][:, columns]
    keep = in_range(codes, facts.post_center_range) & accepts(scores, facts.score_threshold)
    if facts.box_convention == '0.17':
        codes = codes[:, WIDTH_FIRST]
        codes[:, 6:8] *= -1
    boxes = Detections3D(boxes_of_predictions(codes), scores, labels.astype(np.int64))
    return boxes[keep], query[keep]


def boxes_of_predictions(codes: np.ndarray) -> np.ndarray:
    """Return boxes (n, 9) float32 of mmdet3d 1.0, z at the bottom, of codes (n, 10)."""
    sizes = np.exp(codes[:, 3:6])
    centre = codes[:, :3].copy()
    centre[:, 2] -= sizes[:, 2] * np.float32(0.5)
    yaw = np.arctan2(codes[:, 6:7], codes[:, 7:8])
    return np.concatenate([centre, sizes, yaw, codes[:, 8:10]], axis=1).astype(np.float32)
