"""SparseDrive as a stream: images, calibration, pose, time and command in, a driving scene out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.common.runtime.instance_stream import InstanceStream, gap_s, is_near, time_interval
from mm2onnx_driving.sparsedrive.decoding import scene_of
from mm2onnx_driving.sparsedrive.facts import MEMORY
from mmdeploy_ext.runtime.driving import DrivingScene, command_of, with_command
from mmdeploy_ext.runtime.geometry import relative_motion
from mmdeploy_ext.runtime.streams import frame_of_rig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.runtime.frames import Frame, StreamState
    from mmdeploy_ext.runtime.infos import RigFrame
    from mmdeploy_ext.spec.metadata import Metadata

FEATURES, FIRST, NEXT = FILES = ('sparsedrive_features', 'sparsedrive_first', 'sparsedrive_next')


class SparseDriveOnnx(InstanceStream):
    """The three files; the first frame has its own graph."""

    families, files, parts = ('sparsedrive',), FILES, ('features', 'first head', 'next head')

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        features = self.graphs[FEATURES].run(dict(img=frame.images))
        command = np.array([command_of(frame)])
        feeds = dict(features, lidar2img=frame.lidar2img.astype(np.float32), command=command)
        if memory is None:
            return features | self.graphs[FIRST].run(feeds)
        facts, motion = self.metadata.postprocess, relative_motion(memory.ego_pose, frame.ego_pose)
        feeds |= {f'pre_{name}': memory.tensors[name] for name in MEMORY}
        feeds |= dict(
            gap=np.array([gap_s(memory, frame.timestamp_s)]),
            time_interval=time_interval(facts, memory, frame.timestamp_s),
            near=np.float32([is_near(facts, memory, frame.timestamp_s)]),
            motion=motion[None].astype(np.float32),
        )
        return features | self.graphs[NEXT].run(feeds)

    def hidden(self, name: str) -> bool:
        return name.startswith('post_')

    def next_memory(
        self, frame: Frame, memory: StreamState | None, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        return {name: outputs[f'post_{name}'] for name in MEMORY}

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        spec = self.graphs[NEXT].spec
        return {name: tuple(spec.tensor(f'pre_{name}').axes) for name in MEMORY}

    def moment(self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: Any = None) -> Frame:
        return frame_with_command(images_bgr, self.in_box_frame(rig), self.rule)


def frame_with_command(images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: Any) -> Frame:
    return with_command(frame_of_rig(images_bgr, rig, rule), rig.info)


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> DrivingScene:
    return scene_of(metadata.postprocess, outputs)


QUANTISED, RESULT = NEXT, DrivingScene
OPENS = SparseDriveOnnx
