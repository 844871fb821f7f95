"""tensorrt_bevformer: its file with the record of the car's motion as the node has it. Needs numpy.

A record is the 18 numbers of BEVFormer's input `can_bus`, of a car in the map:

| entries | in the node | in a model, see `bev_motion.motion_since` |
|---|---|---|
| 0 to 2 | position x, y, z, m | the same |
| 3 to 6 | orientation, quaternion w, x, y, z | the same, or w four times |
| 7 to 9 | velocity, m/s | acceleration, m/s^2 |
| 10 to 12 | rotation rate, rad/s | the same |
| 13 to 15 | acceleration, m/s^2 | velocity, m/s |
| 16, 17 | heading about the map's z, 0 to a whole turn, rad and degrees | the same |

Only positions and the heading in degrees are fed as differences to the frame before; the map's axes stay.
Unlike the node's, the heading is the model's, not the quaternion's, and each scene begins without a frame
before it.

Source: autoware_universe, autoware_tensorrt_bevformer, src/{bevformer_node.cpp@0d02fce,
bevformer_data_manager.cpp@df68ec3} (formulas, no code).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_driving.autoware.nodes import BEVFORMER
from mm2onnx_driving.bevformer.runtime import BevFormerOnnx
from mm2onnx_driving.bevformer.targets.tensorrt_plugins import PluginOnnx
from mmdeploy_ext.runtime.bev_motion import YAW_DEG

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.frames import Frame

POSITION = slice(0, 3)


class AutowareBevFormer(BevFormerOnnx):
    """The node's file with the node's float32 record of the motion."""

    files, names = BEVFORMER.graphs, PluginOnnx.names

    def record(self, frame: Frame) -> np.ndarray:
        return np.float32(super().record(frame)).astype(np.float64)

    def feeds_of(self, frame: Frame, before: np.ndarray | None) -> dict[str, np.ndarray]:
        motion = relative(node_record(frame.can_bus), None if before is None else np.float32(before))
        return dict(image=frame.images[None], lidar2img=frame.lidar2img[None], can_bus=motion)


def node_record(record: np.ndarray) -> np.ndarray:
    acceleration, rates, velocity = record[7:10], record[10:13], record[13:16]
    return np.float32(np.r_[record[:7], velocity, rates, acceleration, record[16:]])


def relative(record: np.ndarray, last: np.ndarray | None) -> np.ndarray:
    """Return the fed record (18,): position and heading in degrees become differences.

    `last`: absolute record of the frame before; None at the first frame, with differences 0.
    """
    changed = record.copy()
    for entries in (POSITION, YAW_DEG):
        changed[entries] = 0 if last is None else record[entries] - last[entries]
    return changed
