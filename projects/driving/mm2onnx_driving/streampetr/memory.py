"""The memory in local and global coordinates, in float64.

A memory has the arrays `FIELDS`, each (1, rows, ...): `embedding`, `reference_point` (3), m, `timestamp` (1),
s, `egopose` (4, 4), from the LiDAR frame of a row's origin to the memory's, `velo` (2), m/s, in the LiDAR
frame of a row's origin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.runtime.geometry import invert_pose

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.detections import Arrays

FIELDS = ('embedding', 'reference_point', 'timestamp', 'egopose', 'velo')


def to_local(memory: Arrays, ego_pose: np.ndarray, timestamp_s: float) -> dict[str, np.ndarray]:
    """Return a global memory in the LiDAR frame of a pose (4, 4), LiDAR to global; float32."""
    return _moved(memory, invert_pose(ego_pose), timestamp_s, np.float32)


def to_global(memory: Arrays, ego_pose: np.ndarray, timestamp_s: float) -> dict[str, np.ndarray]:
    """Undo `to_local`; times become float64, the rest stays float32 as published."""
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
