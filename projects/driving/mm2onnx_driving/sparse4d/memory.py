"""The memory of Sparse4D v3: state between frames, and track ids.

A memory has `cached_feature` (1, M, C), `cached_anchor` (1, M, 11) in the LiDAR frame of the last frame,
`confidence` (1, M), float32; `instance_id` (1, M) and `prev_id` (1,), the next id, int64.

Source: HorizonRobotics/Sparse4D c41df4b, models/instance_bank.py and
models/detection3d/{detection3d_blocks,decoder}.py.
Glossary: A anchors of a frame, M anchors that are handed on, C channels, K classes, n boxes. An anchor has 11
numbers in the LiDAR frame: x, y, z of the centre (m), logarithms of length, width and height (m), sine and
cosine of the yaw, velocity vx, vy, vz (m/s).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mm2onnx_driving.common.runtime.instances import (
    CENTRE,
    COLUMNS,
    COSINE,
    SINE,
    VELOCITY,
    gap_s,
    is_near,
    time_interval,
)
from mmdeploy_ext.families.common.runtime.scores import top_rows
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.runtime.geometry import exact_sigmoid, relative_motion

if TYPE_CHECKING:
    from mm2onnx_driving.sparse4d.runtime import Sparse4DFacts

NO_ID = -1


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


def temporal_inputs(
    facts: Sparse4DFacts, channels: int, memory: StreamState | None, frame: Frame
) -> TemporalInputs:
    track_id = np.full((1, facts.num_instances), NO_ID, np.int64)
    if memory is None:
        feature = np.zeros((1, facts.num_temp, channels), np.float32)
        anchor = np.zeros((1, facts.num_temp, COLUMNS), np.float32)
    else:
        feature, gap = memory.tensors['cached_feature'], gap_s(memory, frame.timestamp_s)
        # by the true gap, also after a long one: the default stands in `time_interval` alone
        motion = relative_motion(memory.ego_pose, frame.ego_pose)
        anchor = project_anchors(memory.tensors['cached_anchor'], motion, float(gap))
        track_id[:, : facts.num_temp] = memory.tensors['instance_id']
    interval = time_interval(facts, memory, frame.timestamp_s)
    mask = np.float32([is_near(facts, memory, frame.timestamp_s)])
    return TemporalInputs(feature, anchor, interval, mask, memory is not None, track_id)


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
