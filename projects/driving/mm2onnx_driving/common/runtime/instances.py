"""Refined instances: boxes with track ids, and their streams.

Source: HorizonRobotics/Sparse4D c41df4b, models/detection3d/decoder.py.
Glossary: A instances of a frame, K classes, n boxes. An anchor has 11 numbers in the LiDAR frame: x, y, z of
the centre (m), logarithms of length, width and height (m), sine and cosine of the yaw, velocity vx, vy, vz
(m/s).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.detections import top_rows
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.geometry import exact_sigmoid
from mmdeploy_ext.runtime.streams import StreamRuntime

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.frames import Frame, StreamState


# ---- streams: the time since the last frame decides whether the memory is used, not the scene


def gap_s(memory: StreamState, timestamp_s: float) -> np.float32:
    """Return the seconds since the last frame, maybe negative."""
    return np.float32(timestamp_s - memory.timestamp_s)


def is_near(facts: Any, memory: StreamState | None, timestamp_s: float) -> bool:
    """Whether there is a last frame, at most `facts.max_time_interval` s away."""
    return memory is not None and bool(abs(gap_s(memory, timestamp_s)) <= facts.max_time_interval)


def time_interval(facts: Any, memory: StreamState | None, timestamp_s: float) -> np.ndarray:
    """Return the seconds (1,) float32 since the last frame, or the default without a near one, or if 0."""
    gap = gap_s(memory, timestamp_s) if is_near(facts, memory, timestamp_s) else 0
    return np.float32([gap if gap != 0 else facts.default_time_interval])


class InstanceStream(StreamRuntime):
    reads = ('lidar2img', 'ego_pose', 'timestamp_s')

    def begins_scene(
        self, last: StreamState | None, timestamp_s: float | None, scene_token: str | None
    ) -> bool:
        return last is None

    def starts_anew(self, frame: Frame, memory: StreamState | None) -> bool:
        return not is_near(self.metadata.postprocess, memory, frame.timestamp_s)


# ---- boxes

COLUMNS = 11
CENTRE, LOG_SIZE, SINE, COSINE, VELOCITY = slice(0, 3), slice(3, 6), 6, 7, slice(8, 11)
"""Where an anchor has them."""
CENTERNESS = 0
"""Column of the quality; the other one, of the yaw, is unused."""


@dataclasses.dataclass(frozen=True)
class InstanceBoxes(Detections3D):
    """Boxes of one frame with track ids.

    Attributes:
        class_scores: (n,) float32 scores without centerness, for the published tracking evaluation. As
            published, they are sorted by themselves: entry i may belong to another box than row i.
    """

    class_scores: np.ndarray | None = None


def decode(
    logits: np.ndarray, anchor: np.ndarray, quality: np.ndarray, facts: Any, ids: np.ndarray
) -> InstanceBoxes:
    """Decode logits (1, A, K), anchors, quality (1, A, 2) and ids (1, A) of the last decoder layer.

    `facts` has `max_num` and `score_threshold`.
    """
    scores = exact_sigmoid(logits[0])
    labels, scores = scores.argmax(1), scores.max(1)
    rows = top_rows(scores, facts.max_num)
    class_scores = scores[rows]
    scores = class_scores * exact_sigmoid(quality[0, rows, CENTERNESS])
    order = top_rows(scores, len(scores))
    rows, scores, passes = rows[order], scores[order], np.ones(len(rows), bool)
    if facts.score_threshold is not None:
        passes = (class_scores >= np.float32(facts.score_threshold))[order]
    boxes, labels = boxes_of_anchors(anchor[0, rows]), labels[rows].astype(np.int64)
    return InstanceBoxes(boxes, scores, labels, ids[0, rows], class_scores)[passes]


def boxes_of_anchors(anchor: np.ndarray) -> np.ndarray:
    """Return boxes (n, 9) float32 of anchors (n, 11)."""
    anchor = np.asarray(anchor, np.float32)
    sizes, centre = np.exp(anchor[:, LOG_SIZE]), anchor[:, CENTRE].copy()
    centre[:, 2] -= sizes[:, 2] * np.float32(0.5)
    yaw = np.arctan2(anchor[:, SINE], anchor[:, COSINE])[:, None]
    return np.concatenate([centre, sizes, yaw, anchor[:, VELOCITY][:, :2]], axis=1).astype(np.float32)
