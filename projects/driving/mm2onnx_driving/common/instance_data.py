"""The frames of detectors with a bank of instances."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from mm2onnx_driving.common.camera_data import CameraData
from mmdeploy_ext.base.config import test_dataset, test_pipeline
from mmdeploy_ext.families.synthetic.info_files import write_infos
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.spec.preparation import MultiViewRule


class InstanceData(CameraData):
    """Frames with pose and time; `entries` of generated infos, see `write_infos`."""

    unread_fields = ('intrinsics', 'scene_token')
    needed = ('ego_pose', 'timestamp_s')
    entries: ClassVar[Callable[..., dict[str, Any]] | None] = None

    def frame(self, data: Mapping[str, Any]) -> Frame:
        frame = super().frame(data)
        return dataclasses.replace(frame, scene_token=frame.scene_token or '')

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        infos = write_infos(folder, test_pipeline(cfg), views=rule, entries=self.entries)
        return dict(test_dataset(cfg), ann_file=str(infos), data_root=f'{folder}/')
