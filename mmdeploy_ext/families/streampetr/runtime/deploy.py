"""StreamPETR's deploy contract: three graphs, and in ONNX Runtime a memory that never leaves the engine.

Glossary: N cameras, H, W network input in pixels, L decoder layers in the outputs (all, or 1: the last one,
by `--layers`), Q queries, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.streampetr.runtime.state import FIELDS
from mmdeploy_ext.runtime.bound import bound, fetch, fill

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.engines.base import Backend
    from mmdeploy_ext.families.streampetr.runtime.state import FrameMotion
    from mmdeploy_ext.preprocess.cameras import Calibration
    from mmdeploy_ext.runtime.detections import Arrays

GRAPHS = ('extract_img_feat', 'position_embedding', 'pts_head_memory')
"""`form` of the three files, in the order in which a frame goes through them."""
MOTION = ('ego_motion', 'delta_t_s', 'prev_exists')
"""Inputs of the head that a `FrameMotion` decides."""


class DeployContract:
    """The three graphs, their buffers and the memory.

    Every buffer is allocated once. The outputs of one graph are bound as inputs of the next, and the memory
    that a frame wrote is what the next one reads: two sets of buffers take turns.

    Attributes:
        backbone, embedding, head: the three graphs, with buffers, from `backends`: name of `GRAPHS` ->
            opened file.
        metadata: metadata of the head's file.
        image_shape, image_dtype: (N, 3, H, W) and the type of the images.
        calibration_key: bytes of the last calibration, by which a new one is noticed; empty before.
        fed_bytes: number of bytes written into `rig` and `motion` for the last frame; what an engine other
            than ONNX Runtime copies besides is not counted.
        constant: outputs of the position embedding, which stay until the calibration changes.
        rig, motion: inputs of the position embedding, and of the head about the motion since the last frame.
        features: output of the backbone.
        results: outputs of the head besides the memory.
        nothing: a memory of zeros, which each frame reads that begins a scene.
        memories, current: two memories, and the index of the one that the last frame wrote.
        graphs: part of a frame, 'backbone', 'embedding' or 'head' -> graph.
        state_shapes: field of `FIELDS` -> shape.
    """

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self.backbone, self.embedding, self.head = (bound(backends[name]) for name in GRAPHS)
        self.metadata = self.head.metadata
        image = self.backbone.spec.tensor('img')
        self.image_shape, self.image_dtype = tuple(image.axes), np.dtype(image.dtype)
        self.fed_bytes = 0
        self.calibration_key = b''
        self.constant = {name: self.embedding.allocate(name) for name in self.embedding.spec.output_names}
        self.rig = {name: self.embedding.allocate(name) for name in self.embedding.spec.input_names}
        self.features = {'img_feats': self.head.allocate('img_feats')}
        self.motion = {name: self.head.allocate(name) for name in MOTION}
        outputs = [name for name in self.head.spec.output_names if not name.startswith('post_memory_')]
        self.results = {name: self.head.allocate(name, 'cpu') for name in outputs}
        self.nothing, *self.memories = (
            {field: self.head.allocate(f'pre_memory_{field}') for field in FIELDS} for _ in range(3)
        )
        self.current = 0
        self.graphs = dict(backbone=self.backbone, embedding=self.embedding, head=self.head)
        spec = self.head.spec
        self.state_shapes = {field: tuple(spec.tensor(f'pre_memory_{field}').axes) for field in FIELDS}

    def run(self, images: np.ndarray, calibration: Calibration, moment: FrameMotion) -> dict[str, np.ndarray]:
        """Run one frame, and keep the memory.

        Args:
            images: (N, 3, H, W); if they are contiguous and of `image_dtype`, they are read in place.
            calibration: `lidar2img` and `intrinsics` (N, 4, 4) of the network input; the position embedding
                is computed again only if they change.
            moment: the motion, from the last LiDAR frame to this one, and the time since; the memory is
                ignored if its `prev_exists` is False.

        Returns:
            `all_cls_scores` (L, 1, Q, K), logits, and `all_bbox_preds` (L, 1, Q, 10): x, y, z, then
            logarithms of the sizes, sine and cosine of the heading, and velocities x, y, as `decode` in
            `model.py` takes them.
        """
        self.fed_bytes = self._calibrate(calibration)
        images = np.ascontiguousarray(images, self.image_dtype)
        self.backbone.run({'img': images}, self.features)
        values = (moment.ego_motion, moment.delta_t_s, float(moment.prev_exists))
        for name, value in zip(MOTION, values, strict=True):
            self.fed_bytes += fill(self.motion[name], value)
        before = self.memories[self.current] if moment.prev_exists else self.nothing
        after = self.memories[1 - self.current]
        inputs = {f'pre_memory_{field}': buffer for field, buffer in before.items()}
        outputs = {f'post_memory_{field}': buffer for field, buffer in after.items()}
        self.head.run(
            {**self.features, **self.constant, **inputs, **self.motion}, {**self.results, **outputs}
        )
        self.current = 1 - self.current
        return {name: fetch(buffer) for name, buffer in self.results.items()}

    def _calibrate(self, calibration: Calibration) -> int:
        """Compute the position embedding if the calibration has changed; return the bytes fed."""
        key = calibration.lidar2img.tobytes() + calibration.intrinsics.tobytes()
        if key == self.calibration_key:
            return 0
        fed = fill(self.rig['img2lidar'], np.linalg.inv(calibration.lidar2img))
        fed += fill(self.rig['intrinsics'], calibration.intrinsics)
        self.calibration_key = b''
        self.embedding.run(self.rig, self.constant)
        self.calibration_key = key
        return fed

    def read_state(self, ego_pose: np.ndarray, timestamp_s: float) -> dict[str, np.ndarray]:
        """Return a copy of the memory after the last frame, float32, by `FIELDS`, (1, rows, ...) each.

        It is in the LiDAR frame of that frame, but for velocities, which stay in that of their row's origin.
        Before the first frame it is zeros. Pose and time are for contracts whose memory is in other
        coordinates.
        """
        return {field: fetch(buffer) for field, buffer in self.memories[self.current].items()}

    def write_state(self, tensors: Arrays, ego_pose: np.ndarray, timestamp_s: float) -> None:
        """Replace the memory by `tensors`, as `read_state` returns them, of the right shapes.

        Pose and time are not read here, see `read_state`.
        """
        for field, buffer in self.memories[self.current].items():
            fill(buffer, tensors[field])
