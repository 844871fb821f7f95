"""nuScenes for BEVFormer: cameras, and a record of the car's motion."""

import math
from typing import Any

import numpy as np
from mmdet.datasets import DATASETS
from mmdet3d.datasets import NuScenesDataset
from pyquaternion import Quaternion

from mm2onnx_driving.layers.datasets.nuscenes_dataset import (
    camera_inputs,
    lidar_to_global,
    read_calibration,
)
from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(DATASETS)
class BevNuScenesDataset(NuScenesDataset):
    """mmdet3d's nuScenes data set, plus the matrices of cameras and the motion of the car.

    Infos need a `scene_token`; acceleration, rotation rate and velocity of a `can_bus` (18,) are used.

    Source: fundamentalvision/BEVFormer 66b65f3, datasets/nuscenes_dataset.py.
    """

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return the pipeline's first dict.

        `can_bus` (18,) float64: position x, y, z in the map in m; w of the orientation four times, as
        upstream; acceleration, rotation rate and velocity, or 0; heading in the map in rad and degrees, from
        0 to a whole turn. `ego_pose` (4, 4) float32, LiDAR to global; `timestamp` s; `sample_idx`,
        `scene_token`; per camera `img_filename`, `lidar2img` and `intrinsics` (4, 4) float64, for original
        pixels.
        """
        info = self.data_infos[index]
        name = f'{self.ann_file}: sample {info["token"]}'
        cameras = camera_inputs(info.get('cams') or {}, name)
        if 'scene_token' not in info:
            raise DataError(
                f'{name}: has no scene_token; make the info file again with {tool("synthetic infos")}'
            )
        return dict(
            sample_idx=info['token'],
            scene_token=info['scene_token'],
            timestamp=info['timestamp'] / 1e6,
            ego_pose=lidar_to_global(info, name),
            can_bus=motion_of_car(info, name),
            img_filename=cameras['img_filename'],
            lidar2img=cameras['lidar2img'],
            intrinsics=cameras['intrinsics'],
        )


def motion_of_car(info: dict[str, Any], sample: str) -> np.ndarray:
    """Return the `can_bus` (18,); `sample` names the info in messages."""
    record = np.zeros(18)
    if info.get('can_bus') is not None:
        record[:] = read_calibration(info, 'can_bus', sample, (18,))
    rotation = Quaternion(info['ego2global_rotation'])
    record[:3], record[3:7] = info['ego2global_translation'], rotation.real
    ahead = rotation.rotate([1.0, 0.0, 0.0])
    degrees = math.atan2(ahead[1], ahead[0]) / math.pi * 180
    if degrees < 0:
        degrees += 360
    record[-2], record[-1] = degrees / 180 * math.pi, degrees
    return record
