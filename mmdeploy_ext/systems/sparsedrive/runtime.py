"""SparseDrive as a stream: images, calibration, pose, time and command in, a driving scene out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.driving import DrivingScene
from mmdeploy_ext.runtime.geometry import relative_motion
from mmdeploy_ext.runtime.streams import StreamRuntime, frame_of_rig
from mmdeploy_ext.systems.sparsedrive.decoding import scene_of
from mmdeploy_ext.systems.sparsedrive.facts import MEMORY
from mmdeploy_ext.util.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.runtime.frames import Frame, StreamState
    from mmdeploy_ext.runtime.infos import RigFrame

FEATURES, FIRST, NEXT = FILES = ('sparsedrive_features', 'sparsedrive_first', 'sparsedrive_next')
COMMANDS = ('right', 'left', 'straight on')
"""Commands of nuScenes' infos in the order of the model."""


def command_of(frame: Frame) -> int:
    """Return a frame's index in `COMMANDS`."""
    command = np.asarray(frame.command if frame.command is not None else [], np.float64)
    if command.shape != (len(COMMANDS),) or sorted(command) != [0, 0, 1]:
        raise DataError(
            f'command: got {command.tolist()}, expected a single 1 for one of {", ".join(COMMANDS)} '
            '(gt_ego_fut_cmd of the infos)'
        )
    return int(command.argmax())


class SparseDriveOnnx(StreamRuntime):
    """The three files; the first frame has its own graph."""

    families, files, parts = ('sparsedrive',), FILES, ('features', 'first head', 'next head')
    reads = ('lidar2img', 'ego_pose', 'timestamp_s')

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        features = self.graphs[FEATURES].run(dict(img=frame.images))
        command = np.array([command_of(frame)])
        feeds = dict(features, lidar2img=frame.lidar2img.astype(np.float32), command=command)
        if memory is None:
            return features | self.graphs[FIRST].run(feeds)
        facts, gap = self.metadata.postprocess, np.float32(frame.timestamp_s - memory.timestamp_s)
        near = self.is_near(memory, frame.timestamp_s)
        motion = relative_motion(memory.ego_pose, frame.ego_pose)
        feeds |= {f'pre_{name}': memory.tensors[name] for name in MEMORY}
        feeds |= dict(
            gap=np.array([gap]),
            time_interval=np.float32([gap if near and gap != 0 else facts.default_time_interval]),
            near=np.float32([near]),
            motion=motion[None].astype(np.float32),
        )
        return features | self.graphs[NEXT].run(feeds)

    def is_near(self, memory: StreamState, timestamp_s: float) -> bool:
        longest = self.metadata.postprocess.max_time_interval
        return bool(abs(np.float32(timestamp_s - memory.timestamp_s)) <= longest)

    def hidden(self, name: str) -> bool:
        return name.startswith('post_')

    def next_memory(
        self, frame: Frame, memory: StreamState | None, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        return {name: outputs[f'post_{name}'] for name in MEMORY}

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        spec = self.graphs[NEXT].spec
        return {name: tuple(spec.tensor(f'pre_{name}').axes) for name in MEMORY}

    def begins_scene(
        self, last: StreamState | None, timestamp_s: float | None, scene_token: str | None
    ) -> bool:
        return last is None

    def starts_anew(self, frame: Frame, memory: StreamState | None) -> bool:
        return memory is None or not self.is_near(memory, frame.timestamp_s)

    def moment(self, images_bgr: Sequence[np.ndarray], rig: RigFrame, root: Any = None) -> Frame:
        return frame_with_command(images_bgr, self.in_box_frame(rig), self.rule)


def frame_with_command(images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: Any) -> Frame:
    frame = frame_of_rig(images_bgr, rig, rule)
    command = rig.info.get('gt_ego_fut_cmd')
    return dataclasses.replace(frame, command=None if command is None else np.array(command, np.float64))


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> DrivingScene:
    return scene_of(metadata.postprocess, outputs)


QUANTISED, RESULT = NEXT, DrivingScene
OPENS = SparseDriveOnnx
