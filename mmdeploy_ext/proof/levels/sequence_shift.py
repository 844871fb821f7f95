"""Where on the map a drive is: no model knows it, but the published one loses precision with the distance.

It keeps its memory in float32 and in global coordinates. Two kilometres out, where nuScenes was recorded,
that costs some millimetres per frame, of either contract and of PyTorch itself, and would hide what a proof
looks for: a proof moves every scene to the origin. At 7e5 m it costs centimetres, so that the long-drive
claim (far out and late in the day an engine gives what it gave at home) compares an engine with itself.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proof.levels.sequence_pair import run_pair
from mmdeploy_ext.runtime.frames import invert_pose

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.proof.verdict import SequenceRow
    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult, StreamState

UTM_M = 7e5, 4e6, 500.0
"""x, y, z: metres as in UTM coordinates."""
LATE_S = 1.6e9 + 20 * 60
"""Seconds: a time stamp of these days, twenty minutes into a drive."""

NEAR_M = 100.0
"""Metres: scenes that begin this near to the origin stay where they are."""


class NearOrigin:
    """Frames of which every scene begins within a metre of the map's origin; all else is as it was.

    Whole metres are subtracted, so that a pose in float32 keeps every digit that it has.

    Attributes:
        frames: that are moved.
        moved_m: the farthest that a scene was moved so far.
    """

    def __init__(self, frames: Iterable[Frame]) -> None:
        self.frames, self.moved_m = frames, 0.0

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames, moved."""
        scene, offset = None, np.zeros(3)
        for index, frame in enumerate(self.frames):
            if index == 0 or frame.scene_token != scene:
                scene, offset = frame.scene_token, self._offset(frame)
            yield _moved(frame, -offset) if offset.any() else frame

    def _offset(self, frame: Frame) -> np.ndarray:
        if np.shape(frame.ego_pose) != (4, 4):
            return np.zeros(3)  # the models say what is wrong with it
        place = np.round(np.asarray(frame.ego_pose, np.float64)[:3, 3])
        distance = float(np.linalg.norm(place))
        if not distance > NEAR_M:
            return np.zeros(3)
        self.moved_m = max(self.moved_m, distance)
        return place


def _moved(frame: Frame, metres: np.ndarray) -> Frame:
    pose = np.array(frame.ego_pose, np.float64)
    pose[:3, 3] += metres
    inverse = None if frame.ego_pose_inv is None else invert_pose(pose)
    return dataclasses.replace(frame, ego_pose=pose, ego_pose_inv=inverse)


class Shifted:
    """A stepper that runs frames elsewhere on the map and at another time, and tells of it as if at home.

    Attributes:
        stepper: who runs.
        offset_m: (3,) added to the place.
        offset_s: added to the time.
    """

    def __init__(self, stepper: Stepper, offset_m: tuple[float, float, float], offset_s: float) -> None:
        self.stepper, self.offset_m, self.offset_s = stepper, np.asarray(offset_m, np.float64), offset_s

    @property
    def state(self) -> StreamState | None:
        """The memory after the last frame, with the pose and time at home."""
        state = self.stepper.state
        return None if state is None else self._moved(state, -1)

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.stepper.state = None if state is None else self._moved(state, 1)

    def reset(self) -> None:
        """Empty the memory."""
        self.stepper.reset()

    def step(self, frame: Frame) -> StepResult:
        """Run a frame over there."""
        moved = self._moved(frame, 1)
        inverse = None if frame.ego_pose_inv is None else invert_pose(moved.ego_pose)
        return self.stepper.step(dataclasses.replace(moved, ego_pose_inv=inverse))

    def _moved(self, what: Any, sign: int) -> Any:
        pose = np.array(what.ego_pose, np.float64)
        pose[:3, 3] += sign * self.offset_m
        return dataclasses.replace(what, ego_pose=pose, timestamp_s=what.timestamp_s + sign * self.offset_s)


def run_far(
    at_home: Stepper,
    far_away: Stepper,
    frames: Iterable[Frame],
    spec: GraphSpec,
    offset_m: tuple[float, float, float] = UTM_M,
    offset_s: float = LATE_S,
    **settings: Any,
) -> SequenceRow:
    """Run an engine over a drive, and a second one of the same files over the drive moved and delayed.

    Args:
        at_home: the engine on the drive as it is; best near the origin and with times near 0.
        far_away: another one of the same files.
        frames: the drive.
        spec: see `run_modes`.
        offset_m: added to every place.
        offset_s: added to every time.
        settings: of `run_modes`.

    Returns:
        The free-running comparison; its tensors have the tolerances of the spec as their scale.
    """
    return run_pair(at_home, Shifted(far_away, offset_m, offset_s), frames, spec, 'free', **settings)
