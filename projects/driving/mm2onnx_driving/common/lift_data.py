"""The frames of detectors that lift pictures, in their key ego frame."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mm2onnx_driving.common.camera_data import CameraData
from mm2onnx_driving.common.camera_samples import camera_frame
from mm2onnx_driving.common.runtime.lift_splat import rig_in_key_ego
from mmdeploy_ext.base.config import test_pipeline
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.families.common.samples import only
from mmdeploy_ext.families.synthetic.info_files import write_infos
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.infos import RigFrame
from mmdeploy_ext.runtime.streams import frame_of_rig
from mmdeploy_ext.spec.preparation import MultiViewRule
from mmdeploy_ext.upstream.models import catalogue

INPUTS = 7
"""Tensors of `img_inputs`."""
DATASET = 'BEVDetNuScenesDataset'


class LiftData(CameraData):
    compared = ()
    unread_fields = ('camera_times_s',)

    def __init__(self, cameras: int = 6) -> None:
        self.cameras = cameras

    @staticmethod
    def frame_of(images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: MultiViewRule) -> Frame:
        return frame_of_rig(images_bgr, rig_in_key_ego(rig, rule), rule)

    def frame(self, data: Mapping[str, Any]) -> Frame:
        """Return the present frame of a sample with `img_inputs`."""
        if 'img_inputs' not in data:
            raise DataError(
                'the test pipeline does not return img_inputs; add it to the keys of its last step'
            )
        inputs = data['img_inputs']
        while len(inputs) == 1:  # augmentations
            inputs = inputs[0]
        if len(inputs) != INPUTS:
            raise DataError(f'img_inputs: got {len(inputs)} tensors, expected {INPUTS}')
        images, sensor2ego, ego2global, intrins, rots, trans, _ = (
            np.asarray(value, np.float64)[0] for value in inputs
        )
        count = min(len(images), self.cameras)
        images = images[:: len(images) // count]  # camera by camera, of each the newest first
        key = ego2global[0]
        camera2key = np.linalg.inv(key) @ ego2global[:count] @ sensor2ego[:count]
        full = np.tile(np.eye(4), (count, 1, 1))
        full[:, :3, :3] = rots[:count] @ intrins[:count]
        full[:, :2, :3] += trans[:count, :2, None] * intrins[:count, 2:]
        meta = only(data.get('img_metas', {}), 'img_metas')
        fields = dict(lidar2img=full @ np.linalg.inv(camera2key), intrinsics=full, ego_pose=key)
        for name, entry in (('timestamp_s', 'timestamp'), ('scene_token', 'scene_token')):
            if meta.get(entry) is not None:
                fields[name] = meta[entry]
        return camera_frame(images, fields, meta)

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        steps = test_pipeline(cfg)
        catalogue.register([DATASET])
        return dict(
            type=DATASET,
            ann_file=str(write_infos(folder, steps, rule)),
            data_root=f'{folder}/',
            pipeline=steps,
            modality=dict(use_camera=True, use_lidar=False),
            test_mode=True,
        )
