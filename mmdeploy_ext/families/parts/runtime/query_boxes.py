"""From logits and box codes of queries to boxes, without NMS. Needs numpy only.

Glossary: L decoder layers, R queries, K classes, n boxes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.spec import TensorSpec
from mmdeploy_ext.families.parts.runtime.scores import sigmoid, top_rows
from mmdeploy_ext.runtime.detections3d import Detections3D, in_range

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.contract.spec import ColumnGroup

PREDICTIONS = ('all_cls_scores', 'all_bbox_preds')
"""Outputs from which boxes are decoded."""
LOWEST_THRESHOLD, LOWERED = 0.01, 0.9
"""A threshold that nothing passes is lowered by this factor until something does, or it is this low."""
CENTRE, SIZES = [0, 1, 4], [2, 3, 5]
"""Columns of a box code: x, y, z, and logarithms of the three sizes, in the order of the box convention."""


def output_specs(
    rows: tuple[int, ...], classes: int, logits: Sequence[ColumnGroup], boxes: Sequence[ColumnGroup]
) -> tuple[TensorSpec, TensorSpec]:
    """Return the specs of the outputs that `decode` reads.

    Args:
        rows: their axes without the last one, (L, 1, R).
        classes: K.
        logits: tolerance of the logits.
        boxes: tolerances of the columns of a box code.
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
    """Return (n,) bool, which scores (n,) are kept: those above the threshold.

    If none is above it, it is lowered by steps (`LOWERED`) until some score reaches it. All are kept if the
    threshold is None or 0, or if it would be lowered below `LOWEST_THRESHOLD`.
    """
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
    """Return which scores (n,) are above the threshold; without one all are kept."""
    return scores > (threshold or 0.0)


def decode(
    cls_scores: np.ndarray,
    bbox_preds: np.ndarray,
    facts: Mapping[str, Any],
    accepts: Callable[[np.ndarray, float | None], np.ndarray] = passing,
) -> Detections3D:
    """Decode the outputs of one frame to boxes of mmdet3d 1.0 in the LiDAR frame, with z at the bottom.

    At most `max_num` of the facts come back, best first.

    One query may give several boxes, and there is no NMS.

    Args:
        cls_scores: (L, 1, R, K) logits; the last layer counts.
        bbox_preds: (L, 1, R, 10): x, y in m, logarithms of the first two sizes, z of the centre in m, log
            height, sine and cosine of the yaw, velocity x, y in m/s.
        facts: the `postprocess` entry of the file's metadata: `max_num`, `post_center_range` (the least x, y,
            z of a centre, then the greatest, m), `score_threshold` (may be missing), and `box_convention`,
            the mmdet3d whose boxes the model was trained with. For 0.17, as the published weights, the first
            two sizes are width and length, and the yaw is another; for 1.x they are length and width.
        accepts: chooses scores by the threshold of the facts: `passing`, or `above` for PETR.

    Source: fundamentalvision/BEVFormer 66b65f3 and megvii-research/PETR f7525f9, `get_bboxes` of the heads,
    core/bbox/coders/nms_free_coder.py.
    """
    scores = sigmoid(cls_scores[-1, 0]).reshape(-1)
    best = top_rows(scores, int(facts['max_num']))
    query, labels = np.divmod(best, cls_scores.shape[-1])
    scores, codes = scores[best], bbox_preds[-1, 0].astype(np.float32)[query]
    sizes, centre = np.exp(codes[:, SIZES]), codes[:, CENTRE]
    keep = in_range(centre, facts['post_center_range']) & accepts(scores, facts.get('score_threshold'))
    bottom = centre.copy()
    bottom[:, 2] -= sizes[:, 2] * np.float32(0.5)
    sine, cosine = codes[:, 6:7], codes[:, 7:8]
    if facts['box_convention'] == '0.17':
        sizes, sine, cosine = sizes[:, [1, 0, 2]], -cosine, -sine
    yaw = np.arctan2(sine, cosine)
    boxes = np.concatenate([bottom, sizes, yaw, codes[:, 8:10]], axis=1).astype(np.float32)
    return Detections3D(boxes, scores, labels.astype(np.int64))[keep]
