"""camera_streampetr's loop between its three files: poses, times and memory as the node keeps them.

Differs from the node in: memories begin as zeros (there they are whatever the device memory held; open pull
requests 13161, 13267); another calibration is embedded again (there the first one stays for good); pictures
come prepared as the model was trained, not by the node's own resize, and get the node's planes and norm.

Source: autoware_universe 5e12a711, autoware_camera_streampetr, lib/network/{network.cpp:212-300,memory.cu},
src/node.cpp:252-258,501-580, lib/network/camera_data_store.cpp:462-470 (formulas, no code).

Glossary: N cameras, Q queries, K classes, M rows before a frame, R rows after it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.consumers.autoware.streampetr_rules import FILES, from_node
from mmdeploy_ext.families.streampetr.runtime.state import FIELDS, to_global, to_local
from mmdeploy_ext.runtime.frames import invert_pose

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.engines.base import Backend
    from mmdeploy_ext.families.streampetr.runtime.state import Moment
    from mmdeploy_ext.preprocess.cameras import Calibration
    from mmdeploy_ext.runtime.detections import Arrays

logger = logging.getLogger(__name__)
RESTART_S = 600.0
"""Seconds after which the node's clock begins again at 0."""
PREDICTIONS = ('all_cls_scores', 'all_bbox_preds')
"""Outputs whose queries are columns."""


class NodeContract:
    """The three files and the node's buffers; see `DeployContract` for what the methods mean.

    Attributes:
        memory: rows after the last frame, places relative to the first pose, times as the node has them.
        origin: (3,) metres, translation of the first pose; None before it.
        started_s: time of the first frame, or of the last restart of the clock; None before.
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
        self.turned, scale, shift = from_node(planes, rule.mean, rule.std, rule.to_rgb)
        self.scale, self.shift = (values.reshape(-1, 1, 1) for values in (scale, shift))
        self.graphs = dict(backbone=self.backbone, embedding=self.embedding, head=self.head)

    def run(self, images: np.ndarray, calibration: Calibration, moment: Moment) -> dict[str, np.ndarray]:
        """Run one frame as the node does, and keep its memory.

        Returns:
            `all_cls_scores` (1, 1, Q, K), `all_bbox_preds` (1, 1, Q, 10) of the last decoder layer.
        """
        planes = self.fed(images)
        features = self.backbone.infer(dict(img=np.ascontiguousarray(planes, np.float32)[None]))
        self._calibrate(calibration)
        pose, time = self._place(moment.ego_pose), self._clock(moment.timestamp_s)
        if time > RESTART_S:  # what is in the memory is then dated wrongly, as there
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
        found = self.head.infer(feeds)
        self.memory = {field: np.array(found[f'post_memory_{field}']) for field in FIELDS}
        self.memory['timestamp'] = self.memory['timestamp'] - time
        return {name: found[name].transpose(0, 2, 1)[None] for name in PREDICTIONS}

    def fed(self, images: np.ndarray) -> np.ndarray:
        """Return pictures (N, 3, H, W), normalised as the model was trained, as the node normalises them."""
        found = (images - self.shift) / self.scale  # in float64: without a change the same to the bit
        return found[:, ::-1] if self.turned else found

    def reset(self) -> None:
        """Zero the memories, poses too, and leave the times, as the node does."""
        for field in FIELDS:
            if field != 'timestamp':
                self.memory[field] = np.zeros_like(self.memory[field])

    def _place(self, pose: np.ndarray) -> np.ndarray:
        """Return a pose relative to the place of the first one; its rotation stays absolute."""
        if self.origin is None:
            self.origin = np.array(pose[:3, 3], np.float64)
        moved = np.array(pose, np.float64)
        moved[:3, 3] -= self.origin
        return moved

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
        """Return the memory after the last frame in its LiDAR frame, with ages."""
        return to_local(self.memory, self._place(ego_pose), float(self._clock(timestamp_s)))

    def write_state(self, tensors: Arrays, ego_pose: np.ndarray, timestamp_s: float) -> None:
        """Replace the memory by a local one of the right shapes."""
        found = to_global(tensors, self._place(ego_pose), float(self._clock(timestamp_s)))
        self.memory = {field: found[field].astype(np.float32) for field in FIELDS}
