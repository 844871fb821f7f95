"""The memory of Sparse4D v3: state between frames, track ids, and boxes.

A memory has `cached_feature` (1, M, C), `cached_anchor` (1, M, 11) in the LiDAR frame of the last frame,
`confidence` (1, M), float32; `instance_id` (1, M) and `prev_id` (1,), the next id, int64.

Source: HorizonRobotics/Sparse4D c41df4b, models/instance_bank.py and
models/detection3d/{detection3d_blocks,decoder}.py.
Glossary: A anchors of a frame, M anchors that are handed on, C channels, K classes, n boxes. An anchor has 11
numbers in the LiDAR frame: x, y, z of the centre (m), logarithms of length, width and height (m), sine and
cosine of the yaw, velocity vx, vy, vz (m/s).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmdeploy_ext.families.common.runtime.scores import top_rows
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.runtime.geometry import exact_sigmoid, relative_motion

if TYPE_CHECKING:
    from mmdeploy_ext.systems.sparse4d.facts import Sparse4DFacts

COLUMNS = 11
CENTRE, LOG_SIZE, SINE, COSINE, VELOCITY = slice(0, 3), slice(3, 6), 6, 7, slice(8, 11)
"""Where an anchor has them."""
NO_ID = -1
CENTERNESS = 0
"""Column of the quality; the other one, of the yaw, is unused."""


class TemporalInputs(NamedTuple):
    """Inputs of a frame's graph from the memory.

    Attributes:
        feature, anchor: (1, M, C) and (1, M, 11) float32, anchors moved into this frame; zeros without a last
            frame.
        time_interval: (1,) float32, seconds since the last frame, maybe negative, or the default.
        mask: (1,) float32, 1 if the last frame belongs to this one, else 0.
        exists: whether there is a last frame, however long ago.
        track_id: (1, A) int64, ids of the last frame's instances, then `NO_ID`; not yet masked.
    """

    feature: np.ndarray
    anchor: np.ndarray
    time_interval: np.ndarray
    mask: np.ndarray
    exists: bool
    track_id: np.ndarray


def is_near(facts: Sparse4DFacts, memory: StreamState | None, timestamp_s: float) -> bool:
    if memory is None:
        return False
    return bool(abs(np.float32(timestamp_s - memory.timestamp_s)) <= facts.max_time_interval)


def temporal_inputs(
    facts: Sparse4DFacts, channels: int, memory: StreamState | None, frame: Frame
) -> TemporalInputs:
    track_id = np.full((1, facts.num_instances), NO_ID, np.int64)
    interval, near = facts.default_time_interval, is_near(facts, memory, frame.timestamp_s)
    if memory is None:
        feature = np.zeros((1, facts.num_temp, channels), np.float32)
        anchor = np.zeros((1, facts.num_temp, COLUMNS), np.float32)
    else:
        feature, gap = memory.tensors['cached_feature'], np.float32(frame.timestamp_s - memory.timestamp_s)
        # by the true gap, also after a long one: the default stands in `time_interval` alone
        motion = relative_motion(memory.ego_pose, frame.ego_pose)
        anchor = project_anchors(memory.tensors['cached_anchor'], motion, float(gap))
        track_id[:, : facts.num_temp] = memory.tensors['instance_id']
        interval = gap if near and gap != 0 else interval
    time_interval, mask = np.array([interval], np.float32), np.array([near], np.float32)
    return TemporalInputs(feature, anchor, time_interval, mask, memory is not None, track_id)


def project_anchors(anchor: np.ndarray, motion: np.ndarray, seconds: float) -> np.ndarray:
    """Return anchors (..., 11) float32 moved by velocity, then by `motion` (4, 4), LiDAR to later LiDAR.

    Computed in float64 with one rounding at the end.
    """
    anchor, motion = np.asarray(anchor, np.float64), np.asarray(motion, np.float64)
    rotation, moved = motion[:3, :3], anchor.copy()
    place = anchor[..., CENTRE] + anchor[..., VELOCITY] * seconds
    moved[..., CENTRE] = place @ rotation.T + motion[:3, 3]
    moved[..., VELOCITY] = anchor[..., VELOCITY] @ rotation.T
    moved[..., [SINE, COSINE]] = anchor[..., [COSINE, SINE]] @ rotation[:2, :2].T
    return moved.astype(np.float32)


def tracked(
    facts: Sparse4DFacts, inputs: TemporalInputs, memory: StreamState | None, logits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return track ids (1, A) int64 and confidences (1, A) float32 of logits (1, A, K)."""
    raw = exact_sigmoid(np.asarray(logits).max(-1))
    confidence, next_id = raw.copy(), 0
    if memory is not None:
        decayed = memory.tensors['confidence'] * np.float32(facts.confidence_decay)
        confidence[:, : facts.num_temp] = np.maximum(decayed, confidence[:, : facts.num_temp])
        next_id = int(memory.tensors['prev_id'][0])
    ids = np.where(inputs.mask[0] > 0, inputs.track_id, NO_ID)
    is_new = ids == NO_ID
    if facts.score_threshold is not None:
        is_new &= raw >= np.float32(facts.score_threshold)
    ids[is_new] = next_id + np.arange(is_new.sum())
    return ids, confidence


def next_bank(
    facts: Sparse4DFacts,
    memory: StreamState | None,
    feature: np.ndarray,
    anchor: np.ndarray,
    ids: np.ndarray,
    confidence: np.ndarray,
    kept: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the memory after a frame with features (1, A, C) and anchors (1, A, 11).

    `kept` (M,) are rows to hand on instead of the most confident ones.
    """
    kept = top_rows(confidence[0], facts.num_temp) if kept is None else kept
    next_id = 0 if memory is None else int(memory.tensors['prev_id'][0])
    return dict(
        cached_feature=np.array(feature[:, kept], np.float32),
        cached_anchor=np.array(anchor[:, kept], np.float32),
        confidence=confidence[:, kept],
        instance_id=ids[:, kept],
        prev_id=np.array([next_id + (ids >= next_id).sum()], np.int64),
    )


@dataclasses.dataclass(frozen=True)
class InstanceBoxes(Detections3D):
    """Boxes of one frame with track ids.

    Attributes:
        class_scores: (n,) float32 scores without centerness, for the published tracking evaluation. As
            published, they are sorted by themselves: entry i may belong to another box than row i.
    """

    class_scores: np.ndarray | None = None


def decode(
    logits: np.ndarray, anchor: np.ndarray, quality: np.ndarray, facts: Sparse4DFacts, ids: np.ndarray
) -> InstanceBoxes:
    """Decode logits (1, A, K), anchors, quality (1, A, 2) and ids (1, A) of the last decoder layer."""
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
