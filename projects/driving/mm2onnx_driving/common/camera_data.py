"""The frames of families of several cameras; each class of a family's frames derives from one of these."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mm2onnx_driving.common.camera_samples import camera_frame, dumped_frame, loaded_frame
from mm2onnx_driving.common.runtime.bev_frames import frame_with_record
from mm2onnx_driving.common.runtime.lift_splat import rig_in_key_ego
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mmdeploy_ext.base.config import test_dataset, test_pipeline
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.families.common.samples import only
from mmdeploy_ext.families.sequence_data import SequenceData
from mmdeploy_ext.families.synthetic.info_files import generated_dataset, write_infos
from mmdeploy_ext.runtime.bev_motion import CAN_BUS
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.infos import RigFrame, read_frames
from mmdeploy_ext.runtime.streams import frame_of_rig
from mmdeploy_ext.spec.preparation import MultiViewRule
from mmdeploy_ext.upstream.models import catalogue


class CameraData(SequenceData):
    """Frames of several cameras on a drive.

    Attributes:
        needed: fields of a `Frame` that samples and dumps must have.
        frame_of: makes a frame of pictures, infos and a rule; None: `frame_of_rig`.
    """

    compared = PREDICTIONS
    needed: ClassVar[tuple[str, ...]] = ()
    frame_of: ClassVar[Callable[..., Frame] | None] = None

    def frame(self, data: Mapping[str, Any]) -> Frame:
        return loaded_frame(data, self.needed)

    def dumped_frame(self, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Frame:
        return dumped_frame(tensors, manifest, self.needed)

    def moments(
        self, cfg: Any, rule: MultiViewRule, infos: Path, root: str | Path | None = None
    ) -> Iterator[Frame]:
        frame_of = self.frame_of or frame_of_rig
        for rig in read_frames(infos, rule, root):
            yield frame_of(rig.read_pictures(), rig, rule)


# ---- frames with a record of motion


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


# ---- frames of detectors with a bank of instances


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


# ---- frames of detectors that lift pictures, in their key ego frame


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
