"""PETR and PETRv2 in PyTorch as a stepper."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from mm2onnx_driving.common.camera_reference import CameraReference
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mm2onnx_driving.petr.graphs import frames_of
from mm2onnx_driving.petr.runtime import READS, camera_times
from mmdeploy_ext.base.errors import DataError
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.families.synthetic.moments import special_drive
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.spec.preparation import MultiViewRule

GAPS_S, LAG_S = (0.5, 0.05, 1.7, 6.0, 0.5), 0.08
"""Seconds between frames with irregular gaps, and between the pictures of a frame."""
OLDER_FRAME = (
    'the previous frame is the last one that ran; the published evaluation uses sweeps from about 1.25 s '
    'earlier, whose features are not stored'
)


def picture_times(frame: Frame) -> np.ndarray:
    """Return the absolute times (N,) of the pictures; no code of the runtime."""
    camera_times(frame)
    times = frame.timestamp_s if frame.camera_times_s is None else frame.camera_times_s
    return np.zeros(len(frame.images)) + np.asarray(times, np.float64)


class PetrReference(CameraReference):
    """The detector's own test path; PETRv2 gets the pictures of the last frame behind the present ones.

    As in upstream's converter, the last calibration is moved into the present LiDAR frame in float64.
    """

    outputs = (*PREDICTIONS, 'img_feats', 'pos_embed')

    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        self.frames = frames_of(model)
        self.reads = READS[self.frames]
        self._seen: dict[tuple[float, str], Frame] = {}
        super().__init__(model, [*([OLDER_FRAME] if self.frames > 1 else []), *notes])

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        return special_drive(sample, GAPS_S, LAG_S)

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        return dict(backbone=[(self.model, 'extract_img_feat')])

    def forget(self) -> None:
        self._before: Frame | None = None
        self._maps = np.zeros(0, np.float32)

    def memory(self) -> dict[str, np.ndarray]:
        if self.frames == 1:
            return {}
        lidar2img = np.array(self._before.lidar2img, np.float64)
        return dict(img_feats=self._maps, lidar2img=lidar2img, camera_times_s=picture_times(self._before))

    def remember(self, state: StreamState) -> None:
        if self.frames == 1:
            return
        if (moment := (state.timestamp_s, state.scene_token)) not in self._seen:
            raise DataError(
                'PETRv2 in PyTorch needs the images of the previous frame, which a state does not have: '
                'run that frame first'
            )
        self._before, self._maps = self._seen[moment], state.tensors['img_feats']

    def step(self, frame: Frame) -> StepResult:
        result = super().step(frame)
        self._before, self._maps = copy.deepcopy(frame), result.outputs['img_feats']
        self._seen[frame.timestamp_s, frame.scene_token] = self._before
        self._seen = dict([*self._seen.items()][-2:])
        return result

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
        count = len(frame.images)
        return {
            self.head.position_encoder: lambda inputs, outputs: dict(pos_embed=outputs[None, :count]),
            self.head: lambda inputs, outputs: dict(
                {name: outputs[name] for name in PREDICTIONS}, img_feats=inputs[0][0][:, :count]
            ),
        }

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        images, meta = [frame.images], self.meta_of(frame)
        if self.frames > 1:
            before = frame if is_first else self._before
            ages = frame.timestamp_s - picture_times(frame)
            earlier = ages + self.model.start_gap_s
            if not is_first:
                earlier = frame.timestamp_s - picture_times(before)
            images.append(before.images)
            motion = np.linalg.inv(before.ego_pose) @ frame.ego_pose
            meta['lidar2img'] += list(before.lidar2img @ motion)
            meta['timestamp'] = [*ages, *earlier]
            meta['pad_shape'] *= 2
        meta['img_shape'] = [(*self.model.picture_size, 3)] * len(meta['lidar2img'])
        pictures = self.tensor(np.concatenate(images))
        return dict(return_loss=False, rescale=True, img=[pictures[None]], img_metas=[[meta]])
