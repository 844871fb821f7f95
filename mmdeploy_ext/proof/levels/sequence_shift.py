"""Where on the map a drive is: no model knows it, but the published one loses precision with the distance.

It keeps its memory in float32 and in global coordinates. Two kilometres out, where nuScenes was recorded,
that costs some millimetres per frame, of either contract and of PyTorch itself, and would hide what a proof
looks for: a proof moves every scene to the origin.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.runtime.frames import invert_pose

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from mmdeploy_ext.runtime.frames import Frame

NEAR_M = 100.0
"""Metres: scenes that begin this near to the origin stay where they are."""


class NearOrigin:
    """Frames of which every scene begins within a metre of the map's origin; all else is as it was.

    Whole metres are subtracted, so that a pose in float32 keeps every digit that it has.

    Attributes:
        frames: that are moved.
        moved_m: the farthest that a scene was moved so far.
    """

    def __init__(self, frames: Collection[Frame]) -> None:
        self.frames, self.moved_m = frames, 0.0

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames, moved."""
        scene, offset = None, np.zeros(3)
        for index, frame in enumerate(self.frames):
            if index == 0 or frame.scene_token != scene:
                scene, offset = frame.scene_token, self._offset(frame)
            yield _moved(frame, -offset) if offset.any() else frame

    def __len__(self) -> int:
        """Return how many frames there are."""
        return len(self.frames)

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
