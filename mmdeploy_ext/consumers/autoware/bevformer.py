"""tensorrt_bevformer: its file with the record of the car's motion as the node has it. Needs numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.consumers.autoware import car_motion
from mmdeploy_ext.consumers.autoware.nodes import BEVFORMER
from mmdeploy_ext.consumers.tensorrt_plugins.loop import PluginOnnx
from mmdeploy_ext.families.bevformer.runtime import BevFormerOnnx

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.frames import Frame


class AutowareBevFormer(BevFormerOnnx):
    """The node's file with the node's record of the motion."""

    files, names = BEVFORMER.graphs, PluginOnnx.names

    def record(self, frame: Frame) -> np.ndarray:
        orientation = self.metadata.postprocess.can_bus_orientation
        self._fed = car_motion.absolute(car_motion.motion_of(super().record(frame), orientation))
        return car_motion.trained_record(self._fed, orientation)

    def feeds_of(self, frame: Frame, before: np.ndarray | None) -> dict[str, np.ndarray]:
        motion = car_motion.relative(self._fed, None if before is None else np.float32(before))
        return dict(image=frame.images[None], lidar2img=frame.lidar2img[None], can_bus=motion)
