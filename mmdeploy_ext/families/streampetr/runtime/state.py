"""The motion between frames, and the memory in local and global coordinates, in float64. Needs numpy only.

A memory is a dict of the arrays `FIELDS`, each (1, rows, ...): `embedding`, `reference_point` (3) in metres,
`timestamp` (1) in seconds, `egopose` (4, 4), from the LiDAR frame of a row's origin to that of the memory,
`velo` (2) in m/s, in the LiDAR frame of a row's origin, which no motion changes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.runtime.geometry import invert_pose

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.runtime.detections import Arrays

FIELDS = ('embedding', 'reference_point', 'timestamp', 'egopose', 'velo')
"""Keys of a memory, see `mmdeploy_ext.runtime.frames.StreamState`."""


@dataclasses.dataclass(frozen=True)
class FrameMotion:
    """Pose and time of a frame, and its motion since the last frame.

    Attributes:
        ego_pose: (4, 4) float64, LiDAR to global.
        timestamp_s: seconds, absolute.
        ego_motion: (4, 4) float64, last LiDAR frame to this one; the identity if there is no memory.
        delta_t_s: seconds since the last frame; 0 if there is no memory.
        prev_exists: whether the frame goes on with the memory; False of the first frame of a scene.
    """

    ego_pose: np.ndarray
    timestamp_s: float
    ego_motion: np.ndarray
    delta_t_s: float
    prev_exists: bool


def to_local(memory: Arrays, ego_pose: np.ndarray, timestamp_s: float) -> dict[str, np.ndarray]:
    """Return a memory in global coordinates, by `FIELDS`, in the LiDAR frame of a pose; float32.

    Its times become ages at `timestamp_s`, positive for the past: a global memory has minus the absolute
    times. `ego_pose` (4, 4) is LiDAR to global, a rotation and a translation, which is not checked.
    """
    return _moved(memory, invert_pose(ego_pose), timestamp_s, np.float32)


def to_global(memory: Arrays, ego_pose: np.ndarray, timestamp_s: float) -> dict[str, np.ndarray]:
    """Undo `to_local`; the times become float64, the rest is float32 as in the published model."""
    return _moved(memory, np.asarray(ego_pose, np.float64), -timestamp_s, np.float64)


def _moved(memory: Arrays, transform: np.ndarray, seconds: float, time_dtype: type) -> dict[str, np.ndarray]:
    points = memory['reference_point'].astype(np.float64) @ transform[:3, :3].T + transform[:3, 3]
    return dict(
        embedding=memory['embedding'].astype(np.float32),
        reference_point=points.astype(np.float32),
        timestamp=(memory['timestamp'].astype(np.float64) + seconds).astype(time_dtype),
        egopose=(transform @ memory['egopose'].astype(np.float64)).astype(np.float32),
        velo=memory['velo'].astype(np.float32),
    )


def check_tensors(tensors: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ShapeError, which names the tensor, for a memory that lacks one, or has another shape or NaN.

    Infinity is refused, too. `shapes` is field -> shape, of all `FIELDS`: `state_shapes` of the contract that
    runs the files, see `DeployContract`.
    """
    for field in FIELDS:
        if field not in tensors:
            raise ShapeError(f'state: has no tensor {field!r}; expected {", ".join(FIELDS)}')
        got, expected = tuple(np.shape(tensors[field])), tuple(shapes[field])
        if got != expected:
            raise ShapeError(
                f'state: {field!r} has shape {got}, expected {expected}; it is the memory of another model'
            )
        if not np.isfinite(tensors[field]).all():
            raise ShapeError(
                f'state: {field!r} has NaN or infinity; call reset() to begin with an empty memory'
            )
