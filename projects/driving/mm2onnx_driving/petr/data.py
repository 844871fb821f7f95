"""The frames of PETR and PETRv2."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm2onnx_driving.common.camera_data import CameraData
from mm2onnx_driving.common.camera_samples import loaded_frame
from mmdeploy_ext.base.config import test_dataset
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.families.synthetic.info_files import generated_dataset
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.spec.preparation import MultiViewRule

OF_CAMERAS = 'images', 'lidar2img', 'intrinsics', 'image_files'


class PetrData(CameraData):
    def __init__(self, frames: int, unread_fields: tuple[str, ...]) -> None:
        self.frames, self.unread_fields = frames, unread_fields

    def frame(self, data: Mapping[str, Any]) -> Frame:
        sample = loaded_frame(data)
        if sample.ego_pose is not None:  # a data set of streams
            return sample
        cameras, rest = divmod(len(sample.images), self.frames)
        if rest:
            raise DataError(
                f'img: got {len(sample.images)} images, expected all cameras for {self.frames} frames'
            )
        present = {name: getattr(sample, name)[:cameras] for name in OF_CAMERAS}
        return dataclasses.replace(sample, **present)

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        ours = dict(collect_keys=[]) if 'collect_keys' in test_dataset(cfg) else {}
        return generated_dataset(folder, cfg, dict(ours, type='CustomNuScenesDataset'), views=rule)
