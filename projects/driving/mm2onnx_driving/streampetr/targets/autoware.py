"""camera_streampetr between its three files: poses, times and memory in the node's form. Needs numpy.

Source: autoware_universe 5e12a711, autoware_camera_streampetr, lib/network/{network.cpp:212-300,memory.cu},
src/node.cpp:252-258,501-580, lib/network/camera_data_store.cpp:462-470 (formulas and defaults, no code).

Glossary: N cameras, H, W pixels, Q queries, which are P columns in the head's outputs, K classes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.autoware.nodes import STREAMPETR
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mm2onnx_driving.streampetr.memory import FIELDS, to_global, to_local
from mm2onnx_driving.streampetr.runtime import StreamPetrOnnx, motion_since
from mmdeploy_ext.runtime.geometry import invert_pose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.frames import Frame, StreamState

BACKBONE, POSITIONS, HEAD = STREAMPETR.graphs
NORMS = dict(
    bgr=((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)),
    rgb=((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
)
"""Planes that a node feeds -> mean and divisor, its constants. Source:
lib/network/camera_data_store.cpp:122-126 ('bgr'), pull request 13167 ('rgb').
"""


def from_node(
    planes: str, mean: Sequence[float], std: Sequence[float], to_rgb: bool
) -> tuple[bool, np.ndarray, np.ndarray]:
    """Return the change from a node's normalised pictures to the training's: x * scale + shift.

    `planes` is a key of `NORMS`; `mean` and `std` are the training's, in the order after `to_rgb`. Returns
    whether to reverse the planes first, then scale and shift, (3,) float64.
    """
    reverses = to_rgb != (planes == 'rgb')
    node_mean, node_std = (np.array(values)[:: -1 if reverses else 1] for values in NORMS[planes])
    return reverses, node_std / np.array(std), (node_mean - np.array(mean)) / np.array(std)


class AutowareStreamPetr(StreamPetrOnnx):
    """The three files as a stream, with the node's clock and map.

    The memory is in the map's axes from `place` on; `timestamp` is minus a row's seconds on the node's clock;
    `state` is in the LiDAR frame of the last frame.

    Attributes:
        place: (3,) metres, translation of the first pose, or None.
        started_s: time of the first frame, or None.
    """

    files = STREAMPETR.graphs

    def __init__(self, paths: Paths, **options: Any) -> None:
        super().__init__(paths, **options)
        self.place: np.ndarray | None = None
        self.started_s: float | None = None
        planes, rule = self.metadata.options.get('node_images', 'bgr'), self.rule
        self.reverses, scale, shift = from_node(planes, rule.mean, rule.std, rule.to_rgb)
        self.scale, self.shift = (values.reshape(-1, 1, 1) for values in (scale, shift))

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        motion_since(memory, frame)  # refuses a frame before the last one
        features = self.graphs[BACKBONE].run(dict(img=np.float32(self.node_planes(frame.images))[None]))
        pose, seconds = self.relative(frame.ego_pose), self.clock(frame.timestamp_s)
        head = self.graphs[HEAD]
        before = {field: np.zeros(shape, np.float32) for field, shape in self.memory_shapes().items()}
        if memory is not None:
            before = memory.tensors
        count = head.spec.tensor('pre_memory_embedding').axes[1]
        feeds = dict(
            self.embedded(frame),
            x=features['img_feats'],
            data_ego_pose=pose[None].astype(np.float32),
            data_ego_pose_inv=invert_pose(pose)[None].astype(np.float32),
            **{f'pre_memory_{field}': before[field][:, :count] for field in FIELDS},
        )
        feeds['pre_memory_timestamp'] = feeds['pre_memory_timestamp'] + seconds
        outputs = head.run({name: np.ascontiguousarray(values) for name, values in feeds.items()})
        outputs['post_memory_timestamp'] = outputs['post_memory_timestamp'] - seconds
        results = {name: outputs[name].transpose(0, 2, 1)[None] for name in PREDICTIONS}
        return outputs | results

    def embedded(self, frame: Frame) -> dict[str, np.ndarray]:
        height, width = self.image_shape[2:]
        rig = dict(
            img_metas_pad=np.float32([height, width, 3]),
            intrinsics=frame.intrinsics[None].astype(np.float32),
            img2lidar=np.linalg.inv(frame.lidar2img)[None].astype(np.float32),
        )
        return self.run_for_rig(POSITIONS, rig)

    def node_planes(self, images: np.ndarray) -> np.ndarray:
        """Return pictures (N, 3, H, W) float64 in the node's normalisation and order of planes."""
        planes = (images - self.shift) / self.scale  # in float64: without a change the same to the bit
        return planes[:, ::-1] if self.reverses else planes

    def relative(self, pose: np.ndarray) -> np.ndarray:
        if self.place is None:
            self.place = np.array(pose[:3, 3], np.float64)
        moved = np.array(pose, np.float64)
        moved[:3, 3] -= self.place
        return moved

    def clock(self, timestamp_s: float) -> np.float32:
        if self.started_s is None:
            self.started_s = timestamp_s
        return np.float32(timestamp_s - self.started_s)

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        spec = self.graphs[HEAD].spec
        return {field: tuple(spec.tensor(f'post_memory_{field}').axes) for field in FIELDS}

    @property
    def state(self) -> StreamState | None:
        state = StreamPetrOnnx.state.fget(self)
        if state is None:
            return None
        pose, seconds = self.relative(state.ego_pose), float(self.clock(state.timestamp_s))
        return dataclasses.replace(state, tensors=to_local(state.tensors, pose, seconds))

    @state.setter
    def state(self, state: StreamState | None) -> None:
        StreamPetrOnnx.state.fset(self, state)
        if self._memory is not None:
            pose, seconds = self.relative(self._memory.ego_pose), float(self.clock(self._memory.timestamp_s))
            rows = to_global(self._memory.tensors, pose, seconds)
            self._memory = dataclasses.replace(
                self._memory, tensors={field: values.astype(np.float32) for field, values in rows.items()}
            )
