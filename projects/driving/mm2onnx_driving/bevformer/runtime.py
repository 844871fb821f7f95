"""BEVFormer as a stream: images, calibration and motion in, boxes out."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mm2onnx_driving.autoware.nodes import BEVFORMER
from mm2onnx_driving.common.runtime.bev_frames import BevOnnx
from mm2onnx_driving.common.runtime.query_boxes import decode
from mm2onnx_driving.plugin_kernels import KERNELS
from mmdeploy_ext.engines.plugins import open_with_plugins
from mmdeploy_ext.runtime.bev_motion import YAW_DEG, motion_since

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Frame
    from mmdeploy_ext.spec.metadata import Metadata


FORM = 'bevformer'


class BevFormerOnnx(BevOnnx):
    families, files = ('bevformer',), (FORM,)


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> Detections3D:
    return decode(outputs['all_cls_scores'], outputs['all_bbox_preds'], metadata.postprocess)


QUANTISED = FORM
OPENS = BevFormerOnnx


DEPLOYED_NAMES = dict(all_cls_scores='outputs_classes', all_bbox_preds='outputs_coords')
"""Output of the portable graph -> its name in TensorRT deployments."""


class PluginOnnx(BevFormerOnnx):
    """The file with plug-ins in numpy; shift and rotation are in the graph."""

    names: ClassVar[dict[str, str]] = {name: ours for ours, name in DEPLOYED_NAMES.items()}
    build = staticmethod(functools.partial(open_with_plugins, kernels=KERNELS))

    def feeds_of(self, frame: Frame, before: np.ndarray | None) -> dict[str, np.ndarray]:
        motion = motion_since(frame.can_bus, before)
        return dict(image=frame.images[None], lidar2img=frame.lidar2img[None], can_bus=motion)


# tensorrt_bevformer: its file with the record of the car's motion as the node has it. Needs numpy.
#
# A record is the 18 numbers of BEVFormer's input `can_bus`, of a car in the map:
#
# | entries | in the node | in a model, see `bev_motion.motion_since` |
# |---|---|---|
# | 0 to 2 | position x, y, z, m | the same |
# | 3 to 6 | orientation, quaternion w, x, y, z | the same, or w four times |
# | 7 to 9 | velocity, m/s | acceleration, m/s^2 |
# | 10 to 12 | rotation rate, rad/s | the same |
# | 13 to 15 | acceleration, m/s^2 | velocity, m/s |
# | 16, 17 | heading about the map's z, 0 to a whole turn, rad and degrees | the same |
#
# Only positions and the heading in degrees are fed as differences to the frame before; the map's axes stay.
# Unlike the node's, the heading is the model's, not the quaternion's, and each scene begins without a frame
# before it.
#
# Source: autoware_universe, autoware_tensorrt_bevformer, src/{bevformer_node.cpp@0d02fce,
# bevformer_data_manager.cpp@df68ec3} (formulas, no code).


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
