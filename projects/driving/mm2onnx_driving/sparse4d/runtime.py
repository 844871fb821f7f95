"""Sparse4D as a stream: images, calibration, pose and time in, boxes with track ids out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mm2onnx_driving.common.runtime.instances import (
    CENTRE,
    COLUMNS,
    COSINE,
    SINE,
    VELOCITY,
    InstanceBoxes,
    InstanceStream,
    decode,
    gap_s,
    is_near,
    time_interval,
)
from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.base.typed_json import parse_json
from mmdeploy_ext.runtime.detections import top_rows
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.runtime.geometry import exact_sigmoid, relative_motion
from mmdeploy_ext.spec.facts import Count, Facts, Fraction, Positive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.spec.metadata import Metadata


# ---- facts that the files keep


@dataclasses.dataclass(frozen=True)
class Sparse4DFacts(Facts):
    """Facts of a Sparse4D.

    Attributes:
        max_num: most boxes of a frame.
        score_threshold: least class score, without centerness, of a box and of a new id; None: no limit.
        num_instances, num_temp: instances of a frame, and instances that are handed on.
        confidence_decay: factor of a confidence of the last frame.
        default_time_interval: seconds; the interval without a last frame, of 0, or above `max_time_interval`.
        max_time_interval: seconds, in either direction.
    """

    max_num: Count
    score_threshold: float | None
    num_classes: Count
    num_instances: Count
    num_temp: Count
    confidence_decay: Fraction
    default_time_interval: Positive
    max_time_interval: Positive


# ---- stream

FORM = 'sparse4d'
PREDICTIONS = ('pred_instance_feature', 'pred_anchor', 'pred_class_score', 'pred_quality_score')


class Sparse4DOnnx(InstanceStream):
    families, files = ('sparse4d',), (FORM,)

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        facts = self.metadata.postprocess
        inputs = temporal_inputs(facts, self.channels, memory, frame)
        outputs = self.infer(frame, inputs)
        ids, confidence = tracked(facts, inputs, memory, outputs['pred_class_score'])
        return dict(outputs, instance_id=ids, confidence=confidence)

    def infer(self, frame: Frame, inputs: TemporalInputs) -> dict[str, np.ndarray]:
        feeds = dict(
            img=frame.images,
            lidar2img=frame.lidar2img.astype(np.float32),
            time_interval=inputs.time_interval,
            temp_instance_feature=inputs.feature,
            temp_anchor=inputs.anchor,
            mask=inputs.mask,
            has_temp=np.float32([inputs.exists]),
        )
        return self.graphs[FORM].run(feeds)

    @property
    def channels(self) -> int:
        return int(self.graphs[self.files[-1]].spec.tensor('pred_instance_feature').axes[-1])

    def next_memory(
        self, frame: Frame, memory: StreamState | None, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        rows = (outputs[name] for name in (*PREDICTIONS[:2], 'instance_id', 'confidence'))
        return next_bank(self.metadata.postprocess, memory, *rows)

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        rows = self.metadata.postprocess.num_temp
        return dict(
            cached_feature=(1, rows, self.channels),
            cached_anchor=(1, rows, COLUMNS),
            confidence=(1, rows),
            instance_id=(1, rows),
            prev_id=(1,),
        )


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> InstanceBoxes:
    _, anchor, logits, quality = (outputs.get(name) for name in PREDICTIONS)
    rows = np.arange(logits.shape[1])[None]
    return decode(logits, anchor, quality, metadata.postprocess, outputs.get('instance_id', rows))


QUANTISED = FORM
OPENS = Sparse4DOnnx


# The memory of Sparse4D v3: state between frames, and track ids.
#
# A memory has `cached_feature` (1, M, C), `cached_anchor` (1, M, 11) in the LiDAR frame of the last frame,
# `confidence` (1, M), float32; `instance_id` (1, M) and `prev_id` (1,), the next id, int64.
#
# Source: HorizonRobotics/Sparse4D c41df4b, models/instance_bank.py and
# models/detection3d/{detection3d_blocks,decoder}.py.
# Glossary: A anchors of a frame, M anchors that are handed on, C channels, K classes, n boxes. An anchor has
# 11
# numbers in the LiDAR frame: x, y, z of the centre (m), logarithms of length, width and height (m), sine and
# cosine of the yaw, velocity vx, vy, vz (m/s).


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


# SparseEnd2End's files of Sparse4D as a stream: a backbone, and heads of a first frame and of the others.


BACKBONE, FIRST, NEXT = FILES = ('sparse4dbackbone', 'sparse4dhead1st', 'sparse4dhead2nd')
CONSTANTS = 'sparse4dconstants.json'
"""File of the heads' constant inputs, by name."""
CONSTANT_INPUTS = ('instance_feature', 'anchor', 'spatial_shapes', 'level_start_index')


class SparseEnd2EndOnnx(Sparse4DOnnx):
    """The three files; `constants` are the heads' fixed inputs."""

    files, parts = FILES, ('backbone', 'first head', 'next head')

    def __init__(self, paths: Paths, **options: Any) -> None:
        super().__init__(paths, **options)
        head = self.graphs[NEXT]
        path = Path(head.backend.path).with_name(CONSTANTS)
        try:
            content = parse_json(path.read_text(encoding='utf-8'))
            self.constants = {
                tensor.name: np.array(content[tensor.name], tensor.dtype).reshape(tensor.axes)
                for tensor in map(head.spec.tensor, CONSTANT_INPUTS)
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelFileError(
                f'{path}: has no valid constants of these files ({error}); export them again'
            ) from error

    def infer(self, frame: Frame, inputs: TemporalInputs) -> dict[str, np.ndarray]:
        features = self.graphs[BACKBONE].run(dict(img=frame.images[None]))
        height, width = self.image_shape[2:]
        feeds = dict(
            self.constants,
            time_interval=inputs.time_interval,
            image_wh=np.tile(np.float32([width, height]), (1, self.num_cameras, 1)),
            lidar2img=frame.lidar2img[None].astype(np.float32),
        )
        if not inputs.exists:
            ids = dict(pred_track_id=np.full_like(inputs.track_id, -1, np.int32))
            return features | ids | self.graphs[FIRST].run(features | feeds)
        feeds |= dict(
            temp_instance_feature=inputs.feature,
            temp_anchor=inputs.anchor,
            mask=inputs.mask.astype(np.int32),
            track_id=inputs.track_id.astype(np.int32),
        )
        return features | self.graphs[NEXT].run(features | feeds)
