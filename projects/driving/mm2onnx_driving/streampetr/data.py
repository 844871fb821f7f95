"""The frames of StreamPETR, and its dumps with the deployment fork's names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from mm2onnx_driving.common.camera_data import CameraData
from mm2onnx_driving.streampetr.model.dump import DUMP_NAMES, DUMP_SUFFIXES, dump_tensors
from mmdeploy_ext.families.synthetic.info_files import generated_dataset
from mmdeploy_ext.spec.preparation import MultiViewRule


class StreamPetrData(CameraData):
    needed = ('intrinsics', 'ego_pose', 'timestamp_s', 'scene_token')
    dump_suffixes, dump_names = DUMP_SUFFIXES, DUMP_NAMES

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        default = dict(type='CustomNuScenesDataset', collect_keys=[])  # these are collected to train a model
        return generated_dataset(folder, cfg, default, views=rule)

    def dump_tensors(self, model: nn.Module, taps: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return dump_tensors(model, taps)
