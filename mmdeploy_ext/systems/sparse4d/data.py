"""The frames of Sparse4D."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdeploy_ext.config.config import test_dataset, test_pipeline
from mmdeploy_ext.families.common.camera_data import CameraData
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.synthetic.info_files import write_infos
from mmdeploy_ext.systems.sparse4d.runtime import PREDICTIONS


class Sparse4DData(CameraData):
    compared = PREDICTIONS
    unread_fields = ('intrinsics', 'scene_token')
    needed = ('ego_pose', 'timestamp_s')

    def frame(self, data: Mapping[str, Any]) -> Frame:
        frame = super().frame(data)
        return dataclasses.replace(frame, scene_token=frame.scene_token or '')

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        infos = write_infos(folder, test_pipeline(cfg), views=rule)
        return dict(test_dataset(cfg), ann_file=str(infos), data_root=f'{folder}/')
