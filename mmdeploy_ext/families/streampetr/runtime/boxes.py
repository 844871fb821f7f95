"""StreamPETR's box decoding without PyTorch: one query may give several boxes, and there is no NMS.

Glossary: L decoder layers, Q queries, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.families.parts.runtime.scores import sigmoid, top_rows
from mmdeploy_ext.runtime.detections3d import Detections3D, in_range

if TYPE_CHECKING:
    from collections.abc import Mapping


def decode(cls_scores: np.ndarray, bbox_preds: np.ndarray, facts: Mapping[str, Any]) -> Detections3D:
    """Decode the outputs of one frame, best first; z is that of the bottom.

    Args:
        cls_scores: (L, 1, Q, K) logits; the last layer counts.
        bbox_preds: (L, 1, Q, 10): x, y, z centre in metres, three log sizes, sin and cos of the yaw, vx, vy.
        facts: the `postprocess` entry of the file's metadata: `max_num`, `post_center_range` (metres,
            inclusive, for the centre) and `score_threshold` (None or 0 keeps all).

    Source: exiawsh/StreamPETR 95f6470, core/bbox/coders/nms_free_coder.py and streampetr_head.py
    `get_bboxes`.
    """
    scores = sigmoid(cls_scores[-1, 0]).reshape(-1)
    best = top_rows(scores, int(facts['max_num']))
    query, labels = np.divmod(best, cls_scores.shape[-1])
    scores, preds = scores[best], bbox_preds[-1, 0].astype(np.float32)[query]
    keep = in_range(preds, facts['post_center_range']) & (scores >= (facts.get('score_threshold') or 0.0))
    return Detections3D(boxes(preds), scores, labels.astype(np.int64))[keep]


def boxes(preds: np.ndarray) -> np.ndarray:
    """Return (n, 9) float32 boxes, z at the bottom, of (n, 10) predictions; see `decode`."""
    sizes = np.exp(preds[:, 3:6])
    centre = preds[:, :3].copy()
    centre[:, 2] -= sizes[:, 2] * np.float32(0.5)
    yaw = np.arctan2(preds[:, 6:7], preds[:, 7:8])
    return np.concatenate([centre, sizes, yaw, preds[:, 8:10]], axis=1).astype(np.float32)
