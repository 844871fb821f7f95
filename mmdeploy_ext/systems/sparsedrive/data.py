"""SparseDrive's frames, with the driver's command."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.config.config import test_dataset, test_pipeline
from mmdeploy_ext.families.common.camera_data import CameraData
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.synthetic.info_files import write_infos
from mmdeploy_ext.systems.sparsedrive.facts import OUTPUTS
from mmdeploy_ext.systems.sparsedrive.runtime import frame_with_command


def entries(rng: np.random.Generator) -> dict[str, Any]:
    """Return an info's entries for SparseDrive's data set."""
    return dict(
        map_location='generated',
        map_annos={},
        ego_status=rng.uniform(-1, 1, 10),
        gt_ego_fut_cmd=np.eye(3)[rng.integers(3)],
        gt_ego_fut_trajs=np.zeros((6, 2)),
        gt_ego_fut_masks=np.zeros(6),
        gt_boxes=np.zeros((0, 7)),
        gt_names=np.zeros(0, str),
        gt_velocity=np.zeros((0, 2)),
        num_lidar_pts=np.zeros(0, int),
    )


class SparseDriveData(CameraData):
    compared = OUTPUTS[:-2]
    unread_fields = ('intrinsics', 'scene_token')
    needed = ('ego_pose', 'timestamp_s', 'command')
    frame_of = staticmethod(frame_with_command)

    def frame(self, data: Mapping[str, Any]) -> Frame:
        frame = super().frame(data)
        return dataclasses.replace(frame, scene_token=frame.scene_token or '')

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        infos = write_infos(folder, test_pipeline(cfg), views=rule, entries=entries)
        return dict(test_dataset(cfg), ann_file=str(infos), data_root=f'{folder}/')
