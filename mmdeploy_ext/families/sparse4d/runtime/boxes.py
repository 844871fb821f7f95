"""Boxes of Sparse4D's outputs: best classes, quality, track ids. Needs numpy only.

Glossary: A anchors, K classes, n boxes. The columns of an anchor are those of `bank.py`.

Source: HorizonRobotics/Sparse4D c41df4b, models/detection3d/decoder.py, lines 37 to 106.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.families.parts.runtime.scores import top_rows
from mmdeploy_ext.families.sparse4d.runtime.bank import CENTRE, COSINE, LOG_SIZE, SINE, VELOCITY
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.geometry import exact_sigmoid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CENTERNESS = 0
"""Column of the quality; the other one, of the yaw, is not used at test time."""


@dataclasses.dataclass(frozen=True)
class InstanceBoxes(Detections3D):
    """Boxes of one frame with track ids, see `Detections3D`.

    Attributes:
        class_scores: (n,) float32, the scores without centerness, which the published tracking evaluation
            compares with its threshold. As published, they are in descending order of their own: entry i
            may belong to another box than row i, with a threshold to one that did not reach it, unless the
            repair `class_scores` is on.
    """

    class_scores: np.ndarray | None = None


def decode(
    logits: np.ndarray,
    anchor: np.ndarray,
    quality: np.ndarray,
    facts: Mapping[str, Any],
    ids: np.ndarray,
    repairs: Sequence[str] = (),
) -> InstanceBoxes:
    """Decode the outputs of the last decoder layer to boxes, best first, with z at the bottom.

    No NMS and no range: there is one box for each of the `max_num` instances with the best scores of a class
    that reaches the threshold. Scores of boxes are these times the centerness; of equal ones that with the
    better score of a class is first, and of equal ones of these the first row.

    Args:
        logits: (1, A, K), before the sigmoid.
        anchor: (1, A, 11).
        quality: (1, A, 2) logits of centerness and yaw.
        facts: the `postprocess` entry of the file's metadata: `max_num` and `score_threshold`, which is
            compared with the score of the class; None keeps all.
        ids: (1, A) int64 track ids, -1 for none.
        repairs: see `bank.REPAIRS`.
    """
    scores = exact_sigmoid(logits[0])
    labels, scores = scores.argmax(1), scores.max(1)
    rows = top_rows(scores, int(facts['max_num']))
    class_scores = scores[rows]
    scores = class_scores * exact_sigmoid(quality[0, rows, CENTERNESS])
    order = top_rows(scores, len(scores))
    rows, scores, passes = rows[order], scores[order], np.ones(len(rows), bool)
    if facts.get('score_threshold') is not None:
        passes = (class_scores >= np.float32(facts['score_threshold']))[order]
    if 'class_scores' in repairs:
        class_scores = class_scores[order]
    boxes, labels = boxes_of_anchors(anchor[0, rows]), labels[rows].astype(np.int64)
    return InstanceBoxes(boxes, scores, labels, ids[0, rows], class_scores)[passes]


def boxes_of_anchors(anchor: np.ndarray) -> np.ndarray:
    """Return boxes (n, 9) float32, with the columns of `Detections3D`, of anchors (n, 11).

    They are x, y, z of the bottom's centre, length, width, height, yaw and velocity vx, vy; m, rad and m/s in
    the LiDAR frame.
    """
    anchor = np.asarray(anchor, np.float32)
    sizes, centre = np.exp(anchor[:, LOG_SIZE]), anchor[:, CENTRE].copy()
    centre[:, 2] -= sizes[:, 2] * np.float32(0.5)
    yaw = np.arctan2(anchor[:, SINE], anchor[:, COSINE])[:, None]
    return np.concatenate([centre, sizes, yaw, anchor[:, VELOCITY][:, :2]], axis=1).astype(np.float32)
