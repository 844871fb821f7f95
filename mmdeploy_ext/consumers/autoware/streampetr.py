"""camera_streampetr between its three files: poses, times and memory as the node keeps them, and its objects.

Needs numpy; without numba `objects_of` is slow.

Differs from the node in: memories begin as zeros (there they are whatever the device memory held; open pull
requests 13161, 13267); another calibration is embedded again (there the first one stays for good); pictures
come prepared as the model was trained, not by the node's own resize, and get the node's planes and norm.

Source: autoware_universe 5e12a711, autoware_camera_streampetr, lib/network/{network.cpp:212-300,memory.cu},
src/node.cpp:252-258,501-580, lib/network/camera_data_store.cpp:462-470; of the objects
lib/postprocess/postprocess_kernel.cu:47-112, lib/network/network.cpp:52-78,
config/camera_streampetr.param.yaml (formulas and defaults, no code).

Glossary: N cameras, H, W pixels, Q queries, which are P columns in the head's outputs, K classes.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mmdeploy_ext.consumers.autoware.boxes import NodeObjects, suppressed
from mmdeploy_ext.consumers.autoware.streampetr_rules import FILES, from_node
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.families.streampetr.runtime.state import FIELDS, to_global, to_local
from mmdeploy_ext.runtime.detections3d import in_range
from mmdeploy_ext.runtime.geometry import exact_sigmoid, invert_pose

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.engines.base import Backend
    from mmdeploy_ext.families.streampetr.runtime.state import FrameMotion
    from mmdeploy_ext.preprocess.cameras import Calibration
    from mmdeploy_ext.runtime.detections import Arrays

logger = logging.getLogger(__name__)
RESTART_S = 600.0
"""Seconds after which the node's clock begins again at 0."""
PREDICTIONS = ('all_cls_scores', 'all_bbox_preds')
"""Outputs of the head with a column for each query; other consumers have a row for each."""
CERTAIN_LOGIT = 8.0
"""Logits further from 0 have the scores 1 and 0."""


class NodeContract:
    """The three files and the node's buffers.

    Its methods are those of `DeployContract` in `families/streampetr/runtime/deploy.py`.

    Attributes:
        metadata, spec: those of the head's file.
        backbone, embedding, head: sessions of the three files, from `backends`, name of a file -> session.
        memory: rows after the last frame, by `FIELDS`: places and poses are in the axes of the map, from
            `origin` on; `timestamp` is minus the seconds of a row on the node's clock.
        origin: (3,) metres, translation of the first pose; None before it.
        started_s: time of the first frame, or of the last restart of the clock; None before.
        rows: number of rows of the memory that a frame reads; it leaves more.
        reverses, scale, shift: from the node's pictures to those of the training, see `from_node`.
        rig: outputs of the position embedding, inputs of the head that stay until the calibration changes.
        fed_bytes: bytes of all inputs of the head in the last frame.
        image_shape: (N, 3, H, W) of the pictures.
        state_shapes: field of `FIELDS` -> shape of its output, which has all rows.
        calibration_key: bytes of the last calibration, by which another one is noticed; empty before.
        graphs: part of a frame, 'backbone', 'embedding' or 'head' -> session.
    """

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self.backbone, self.embedding, self.head = (backends[name] for name in FILES)
        self.metadata, self.spec = self.head.metadata, self.head.spec
        self.image_shape = tuple(self.backbone.spec.tensor('img').axes[1:])
        self.rows = int(self.spec.tensor('pre_memory_embedding').axes[1])
        self.fed_bytes = 0
        self.state_shapes = {field: tuple(self.spec.tensor(f'post_memory_{field}').axes) for field in FIELDS}
        self.memory = {field: np.zeros(shape, np.float32) for field, shape in self.state_shapes.items()}
        self.origin: np.ndarray | None = None
        self.started_s: float | None = None
        self.rig: dict[str, np.ndarray] = {}
        self.calibration_key = b''
        planes, rule = self.metadata.options.get('node_images', 'bgr'), self.metadata.preprocess
        self.reverses, scale, shift = from_node(planes, rule.mean, rule.std, rule.to_rgb)
        self.scale, self.shift = (values.reshape(-1, 1, 1) for values in (scale, shift))
        self.graphs = dict(backbone=self.backbone, embedding=self.embedding, head=self.head)

    def run(self, images: np.ndarray, calibration: Calibration, moment: FrameMotion) -> dict[str, np.ndarray]:
        """Run one frame as the node does, and keep its memory; at the first of a drive it calls `reset`.

        Images are (N, 3, H, W) float32, prepared as the model was trained; `calibration` is that of the
        cameras; `moment` has pose and time of the frame, and whether it goes on from the one before.
        InferenceError: an engine failed.

        Returns:
            Of the last decoder layer `all_cls_scores` (1, 1, Q, K), which are logits, and `all_bbox_preds`
            (1, 1, Q, 10) in the LiDAR frame, whose columns are the rows of `boxes` in `objects_of`.
        """
        planes = self.node_planes(images)
        features = self.backbone.infer(dict(img=np.ascontiguousarray(planes, np.float32)[None]))
        self._calibrate(calibration)
        pose, time = self._place(moment.ego_pose), self._clock(moment.timestamp_s)
        if time > RESTART_S:  # the rows in the memory are then dated wrongly, as in the node
            self.started_s, time = moment.timestamp_s, np.float32(0)
        if not moment.prev_exists:
            self.reset()
        feeds = dict(
            self.rig,
            x=features['img_feats'],
            data_ego_pose=pose[None].astype(np.float32),
            data_ego_pose_inv=invert_pose(pose)[None].astype(np.float32),
            **{f'pre_memory_{field}': self.memory[field][:, : self.rows] for field in FIELDS},
        )
        feeds['pre_memory_timestamp'] = feeds['pre_memory_timestamp'] + time
        feeds = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        self.fed_bytes = sum(value.nbytes for value in feeds.values())
        outputs = self.head.infer(feeds)
        self.memory = {field: np.array(outputs[f'post_memory_{field}']) for field in FIELDS}
        self.memory['timestamp'] = self.memory['timestamp'] - time
        return {name: outputs[name].transpose(0, 2, 1)[None] for name in PREDICTIONS}

    def node_planes(self, images: np.ndarray) -> np.ndarray:
        """Return pictures (N, 3, H, W) float64 with the node's normalisation and order of planes.

        `images` are the same pictures, normalised as the model was trained.
        """
        planes = (images - self.shift) / self.scale  # in float64: without a change the same to the bit
        return planes[:, ::-1] if self.reverses else planes

    def reset(self) -> None:
        """Zero the memories, poses too, and leave the times, as the node does."""
        for field in FIELDS:
            if field != 'timestamp':
                self.memory[field] = np.zeros_like(self.memory[field])

    def _place(self, pose: np.ndarray) -> np.ndarray:
        """Return a pose relative to the place of the first one; its rotation stays absolute."""
        if self.origin is None:
            self.origin = np.array(pose[:3, 3], np.float64)
        relative = np.array(pose, np.float64)
        relative[:3, 3] -= self.origin
        return relative

    def _clock(self, timestamp_s: float) -> np.float32:
        """Return the seconds since the first frame, float32."""
        if self.started_s is None:
            self.started_s = timestamp_s
        return np.float32(timestamp_s - self.started_s)

    def _calibrate(self, calibration: Calibration) -> None:
        key = calibration.lidar2img.tobytes() + calibration.intrinsics.tobytes()
        if key == self.calibration_key:
            return
        if self.calibration_key:
            logger.warning('another calibration: the node keeps the position embedding of the first one')
        height, width = self.image_shape[2:]
        feeds = dict(
            img_metas_pad=np.float32([height, width, 3]),
            intrinsics=calibration.intrinsics[None].astype(np.float32),
            img2lidar=np.linalg.inv(calibration.lidar2img)[None].astype(np.float32),
        )
        self.rig, self.calibration_key = dict(self.embedding.infer(feeds)), key

    def read_state(self, ego_pose: np.ndarray, timestamp_s: float) -> dict[str, np.ndarray]:
        """Return the memory after the last frame in its LiDAR frame, with ages, by `FIELDS`.

        Velocities are in the LiDAR frame of their rows' origins. `ego_pose` (4, 4), LiDAR to global, and
        `timestamp_s`, in seconds, are pose and time of that frame.
        """
        return to_local(self.memory, self._place(ego_pose), float(self._clock(timestamp_s)))

    def write_state(self, tensors: Arrays, ego_pose: np.ndarray, timestamp_s: float) -> None:
        """Replace the memory by one, `tensors`, as `read_state` returns it.

        `ego_pose` (4, 4), LiDAR to global, and `timestamp_s`, in seconds, are of the frame that it is of.
        """
        memory = to_global(tensors, self._place(ego_pose), float(self._clock(timestamp_s)))
        self.memory = {field: memory[field].astype(np.float32) for field in FIELDS}


# ---- objects


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """Settings that decide which boxes are published.

    Attributes:
        class_names: K, in Autoware's words; of the manifest.
        limits: detection_range, metres: lower x, y, z, then upper, of the centres that are published, ends
            included; of the manifest.
        confidence: (K,) thresholds that scores have to exceed; of the node's own file, as are those below.
        yaw_norms: (K,) least length of a box's (sine, cosine) of the yaw; boxes with less are not published.
        iou: a box that overlaps a better one by more than this is dropped, also if that one is dropped, too;
            pedestrians are compared with pedestrians alone.
        iou_search_m: boxes whose centres are further apart are not compared.
    """

    class_names: tuple[str, ...]
    limits: tuple[float, ...]
    confidence: tuple[float, ...]
    yaw_norms: tuple[float, ...]
    iou: float = 0.5
    iou_search_m: float = 10.0
    circle_m: ClassVar[float] = 0.0
    """Radius of the suppression by distance, which this node does not have."""

    def __post_init__(self) -> None:
        """Refuse thresholds that are not one for each class: ModelFileError."""
        for name in ('confidence', 'yaw_norms'):
            count = len(getattr(self, name))
            if count != len(self.class_names):
                raise ModelFileError(
                    f"{name}: {count} numbers for {len(self.class_names)} classes; the node's own parameter "
                    f'file has to have one for each'
                )


def objects_of(scores: np.ndarray, boxes: np.ndarray, settings: StreamSettings) -> NodeObjects:
    """Return the objects that the node publishes of one frame, best first.

    They are in the frame of the `boxes`; their velocities are 0.

    Args:
        scores: (1, K, P) logits.
        boxes: (1, 10, P): x, y, z of the centre in metres, logarithms of length, width, height in m, sine and
            cosine of the yaw, counter-clockwise from x, and velocities, which are not read.
        settings: thresholds and class names of the node.
    """
    logits, codes = scores[0].astype(np.float32), boxes[0].astype(np.float32)
    scores_by_class = exact_sigmoid(logits)
    scores_by_class[logits > CERTAIN_LOGIT] = 1
    scores_by_class[logits < -CERTAIN_LOGIT] = 0
    labels, best = scores_by_class.argmax(0), scores_by_class.max(0)
    passes = in_range(codes.T, settings.limits) & (best > np.float32(settings.confidence)[labels])
    passes &= np.hypot(codes[6], codes[7]) >= np.float32(settings.yaw_norms)[labels]
    objects = NodeObjects(
        places=codes[:3].T,
        sizes=np.exp(codes[3:6]).T,
        yaws=np.arctan2(codes[6], codes[7]),
        twists=np.zeros((codes.shape[1], 2), np.float32),
        scores=best,
        labels=labels,
    )
    return suppressed(objects[passes].best_first(), settings)
