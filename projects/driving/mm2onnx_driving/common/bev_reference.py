"""Detectors that keep their bird's-eye view, in PyTorch as steppers."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mm2onnx_driving.common.camera_reference import CameraReference, array
from mm2onnx_driving.common.runtime.bev_frames import record_of
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.families.synthetic.moments import changed_drive, record_drive
from mmdeploy_ext.runtime.bev_motion import CAN_BUS, TIE_CELLS, YAW_DEG, rotation_ties
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.spec.preparation import MultiViewRule


def given_record(frame: Frame) -> np.ndarray:
    """Return the record (18,) float64 of a frame as upstream's data set makes it; no code of the runtime."""
    if frame.can_bus is not None:
        return np.array(frame.can_bus, np.float64)
    from scipy.spatial.transform import Rotation  # takes half a second to import

    axes = np.array(frame.ego_pose, np.float64)[:3, :3]
    car = Rotation.from_matrix(np.stack([axes[:, 1], -axes[:, 0], axes[:, 2]], 1))
    heading = np.arctan2(axes[1, 1], axes[0, 1]) % (2 * np.pi)
    record = np.zeros(CAN_BUS)
    record[:3], record[3:7] = frame.ego_pose[:3, 3], np.cos(car.magnitude() / 2)
    record[16:] = heading, np.rad2deg(heading)
    return record


class BevReference(CameraReference):
    reads, outputs = ('lidar2img',), ('bev_embed', 'all_cls_scores', 'all_bbox_preds')

    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        self._ties: dict[str, int] = {}
        super().__init__(model, notes)

    @property
    def notes(self) -> list[str]:
        notes = super().notes
        if not self._ties:
            return notes
        frames = ', '.join(f'{count} cells of {name}' for name, count in self._ties.items())
        return [
            *notes,
            f'rotation of the last view: {frames} are within {TIE_CELLS:g} cells of a tie, where rounding '
            'decides',
        ]

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        frames = list(changed_drive(sample))
        yield from frames
        yield from record_drive(
            dataclasses.replace(frames[-1], images=sample.images), given_record(frames[-1])
        )

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        return dict(network=[(self.model, 'forward_test')])

    def forget(self) -> None:
        self.model.prev_frame_info = dict(prev_bev=None, scene_token=None, prev_pos=0, prev_angle=0)

    def memory(self) -> dict[str, np.ndarray]:
        last = self.model.prev_frame_info
        place = dict(position=last['prev_pos'], heading=[last['prev_angle']])
        place = {name: np.array(values, np.float64) for name, values in place.items()}
        return dict(place, bev_embed=array(last['prev_bev']))

    def remember(self, state: StreamState) -> None:
        self.model.prev_frame_info = dict(
            prev_bev=self.tensor(state.tensors['bev_embed']),
            scene_token=state.scene_token,
            prev_pos=np.array(state.tensors['position']),
            prev_angle=float(state.tensors['heading'][0]),
        )

    def record(self, frame: Frame) -> np.ndarray:
        record_of(frame, self.model.can_bus_orientation)
        return given_record(frame)

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
        return {self.head: lambda inputs, outputs: outputs}

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        record, transformer = self.record(frame), self.head.transformer
        if not is_first and transformer.rotate_prev_bev:
            degrees = record[YAW_DEG] - self.model.prev_frame_info['prev_angle']
            size = self.head.bev_h, self.head.bev_w
            if ties := rotation_ties(degrees, transformer.rotate_center, size):
                self._ties[frame.name] = ties
        meta = dict(self.meta_of(frame), can_bus=record)
        images = torch.from_numpy(np.array(frame.images, np.float32)).to(self.device)
        return dict(return_loss=False, rescale=True, img=[images[None]], img_metas=[[meta]])
