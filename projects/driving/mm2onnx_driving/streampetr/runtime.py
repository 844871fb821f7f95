"""StreamPETR as a stream: images, calibration, pose and time in, boxes out.

Glossary: N cameras, L decoder layers in the outputs, Q queries, K classes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Annotated

import numpy as np

from mm2onnx_driving.common.runtime import query_boxes
from mm2onnx_driving.common.runtime.query_boxes import QueryBoxFacts
from mm2onnx_driving.streampetr.memory import FIELDS
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.runtime.geometry import relative_motion
from mmdeploy_ext.runtime.streams import StreamRuntime
from mmdeploy_ext.spec.facts import Bounds, Count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.streams import Held
    from mmdeploy_ext.spec.metadata import Metadata


# ---- facts that the files keep


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamPetrFacts(QueryBoxFacts):
    memory_len: Count
    topk_proposals: Count
    num_propagated: Annotated[int, Bounds(0, 100_000)]


# ---- stream

BACKBONE, EMBEDDING, HEAD = GRAPHS = ('extract_img_feat', 'position_embedding', 'pts_head_memory')
MAX_GAP_S = 2.0
"""Seconds: four key frames of nuScenes, 0.5 s apart."""


class StreamPetrOnnx(StreamRuntime):
    """An exported StreamPETR; its memory is in the last LiDAR frame, with ages for times."""

    families, files = ('streampetr',), GRAPHS
    parts = ('backbone', 'embedding', 'head')
    reads = ('lidar2img', 'intrinsics', 'ego_pose', 'timestamp_s')
    gap_s = MAX_GAP_S

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, Held]:
        motion, seconds = motion_since(memory, frame)
        features = self.graphs[BACKBONE].run(dict(img=frame.images), ['img_feats'])
        rig = dict(img2lidar=np.linalg.inv(frame.lidar2img), intrinsics=frame.intrinsics)
        rig = {name: matrices[None].astype(np.float32) for name, matrices in rig.items()}
        embedded = self.run_for_rig(EMBEDDING, rig, ('pos_embed', 'cone'))
        before = self.nothing if memory is None else memory.tensors
        feeds = dict(
            **features,
            **embedded,
            **{f'pre_memory_{field}': before[field] for field in FIELDS},
            ego_motion=motion[None].astype(np.float32),
            delta_t_s=np.float32([seconds]),
            prev_exists=np.float32([memory is not None]),
        )
        return self.graphs[HEAD].run(feeds, [f'post_memory_{field}' for field in FIELDS])

    @functools.cached_property
    def nothing(self) -> dict[str, Held]:
        return {field: self.graphs[HEAD].zeros(f'pre_memory_{field}') for field in FIELDS}

    def hidden(self, name: str) -> bool:
        return name.startswith('post_memory_')

    def next_memory(
        self, frame: Frame, memory: StreamState | None, outputs: Mapping[str, Held]
    ) -> dict[str, Held]:
        return {field: outputs[f'post_memory_{field}'] for field in FIELDS}

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        spec = self.graphs[HEAD].spec
        return {field: tuple(spec.tensor(f'pre_memory_{field}').axes) for field in FIELDS}


def motion_since(memory: StreamState | None, frame: Frame) -> tuple[np.ndarray, float]:
    """Return the transform (4, 4) float64 from the last LiDAR frame to this one, and the seconds since."""
    if memory is None:
        return np.eye(4), 0.0
    seconds = frame.timestamp_s - memory.timestamp_s
    if seconds < 0:
        raise DataError(
            f'timestamp_s: got {frame.timestamp_s:.6f}, which is {-seconds:.6f} s before the last frame of '
            f'the same scene; frames must come in order: call reset() when a new drive starts'
        )
    return relative_motion(memory.ego_pose, frame.ego_pose), seconds


def decode(cls_scores: np.ndarray, bbox_preds: np.ndarray, facts: query_boxes.QueryBoxFacts) -> Detections3D:
    """Return boxes, best first, of the last layer of logits (L, 1, Q, K) and codes (L, 1, Q, 10)."""
    return query_boxes.decode(cls_scores, bbox_preds, facts, query_boxes.at_least, query_boxes.IN_ORDER)


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Detections3D:
    return decode(outputs['all_cls_scores'], outputs['all_bbox_preds'], metadata.postprocess)


OPENS = StreamPetrOnnx
