"""An engine that drives far out on the map, so that absolute places computed in float32 are seen."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.frames import invert_pose

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.frames import Frame, Stepper, StepResult, StreamState


class Shifted:
    """A stepper that runs frames elsewhere on the map and at another time, and tells of it as if at home.

    Attributes:
        stepper: the engine that runs.
        place: (4, 4) float64, from the map at home to the one over there.
        offset_s: added to the time.
    """

    def __init__(
        self,
        stepper: Stepper,
        offset_m: tuple[float, float, float],
        offset_s: float = 0.0,
        turn_rad: float = 0.0,
    ) -> None:
        """Keep the engine; places are turned about the vertical axis and then moved."""
        self.stepper, self.place, self.offset_s = stepper, np.eye(4), offset_s
        sine, cosine = np.sin(turn_rad), np.cos(turn_rad)
        self.place[:2, :2] = [[cosine, -sine], [sine, cosine]]
        self.place[:3, 3] = offset_m

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
        pose = (self.place if sign > 0 else invert_pose(self.place)) @ np.asarray(what.ego_pose, np.float64)
        return dataclasses.replace(what, ego_pose=pose, timestamp_s=what.timestamp_s + sign * self.offset_s)
