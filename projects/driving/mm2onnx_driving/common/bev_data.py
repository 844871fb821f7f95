"""Frames with a record of motion."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mm2onnx_driving.common.camera_data import CameraData
from mm2onnx_driving.common.camera_samples import loaded_frame
from mm2onnx_driving.common.runtime.bev_frames import frame_with_record
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.families.synthetic.info_files import generated_dataset
from mmdeploy_ext.runtime.bev_motion import CAN_BUS
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.spec.preparation import MultiViewRule


def can_bus_entry(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return dict(can_bus=rng.uniform(-1, 1, CAN_BUS))


class BevData(CameraData):
    """`dataset_type` reads generated infos with `entries`."""

    dataset_type = 'BevNuScenesDataset'
    entries = staticmethod(can_bus_entry)
    unread_fields = ('intrinsics', 'ego_pose', 'timestamp_s')
    frame_of = staticmethod(frame_with_record)

    def frame(self, data: Mapping[str, Any]) -> Frame:
        frame = loaded_frame(data, ('can_bus', 'scene_token', *self.needed))
        if frame.can_bus.shape != (CAN_BUS,):
            raise DataError(f'img_metas: can_bus has shape {frame.can_bus.shape}, expected ({CAN_BUS},)')
        pose = np.eye(4)
        pose[:3, 3] = frame.can_bus[:3]
        return dataclasses.replace(
            frame,
            ego_pose=pose if frame.ego_pose is None else frame.ego_pose,
            timestamp_s=frame.timestamp_s or 0.0,
        )

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        dataset = dict(type=self.dataset_type)
        return generated_dataset(folder, cfg, dataset, views=rule, entries=self.entries)
