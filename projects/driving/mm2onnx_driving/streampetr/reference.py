"""StreamPETR in PyTorch as a stepper."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera_reference import CameraReference, array
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mm2onnx_driving.streampetr.memory import FIELDS, to_global, to_local
from mm2onnx_driving.streampetr.model.live import is_ours, memory_of, set_memory, tap_geometry, tapped
from mm2onnx_driving.streampetr.model.memory import Memory
from mm2onnx_driving.streampetr.runtime import StreamPetrOnnx
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.families.synthetic.moments import special_drive
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.spec.preparation import MultiViewRule


class StreamPetrReference(CameraReference):
    reads, outputs = StreamPetrOnnx.reads, PREDICTIONS

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        return special_drive(sample)

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        embedding = 'embed_positions' if is_ours(self.head) else 'position_embeding'
        return dict(backbone=[(self.model, 'extract_img_feat')], embedding=[(self.head, embedding)])

    def forget(self) -> None:
        self.head.reset_memory()
        self.model.prev_scene_token = None

    def memory(self) -> dict[str, np.ndarray]:
        rows = {name: array(tensor) for name, tensor in memory_of(self.head)._asdict().items()}
        return to_local(rows, self._last.ego_pose, self._last.timestamp_s)

    def remember(self, state: StreamState) -> None:
        memory = to_global(state.tensors, state.ego_pose, state.timestamp_s)
        set_memory(self.head, Memory(*(torch.from_numpy(memory[field]).to(self.device) for field in FIELDS)))
        self.model.prev_scene_token = state.scene_token

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
        return {}

    @contextlib.contextmanager
    def further_taps(self, frame: Frame) -> Iterator[None]:
        with tapped(self.model):
            yield
            rig = (self.tensor(matrices)[None] for matrices in (frame.lidar2img, frame.intrinsics))
            tap_geometry(self.model, *rig, self.tensor(frame.images))

    def tensors(self, values: Mapping[str, Tensor], was_reset: bool) -> dict[str, np.ndarray]:
        outputs = super().tensors(values, was_reset)
        outputs['outs_dec'] = array(values['out_outs_dec'])
        return outputs | {f'post_memory_{name}': rows for name, rows in self.memory().items()}

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        inverse = frame.ego_pose_inv
        if inverse is None:
            inverse = np.linalg.inv(np.asarray(frame.ego_pose, np.float64))
        numbers = dict(
            lidar2img=self.tensor(frame.lidar2img),
            intrinsics=self.tensor(frame.intrinsics),
            ego_pose=self.tensor(frame.ego_pose),
            ego_pose_inv=self.tensor(inverse),
            timestamp=torch.tensor(frame.timestamp_s, dtype=torch.float64, device=self.device),
        )
        data = {key: [[value]] for key, value in numbers.items()}
        pictures = [self.tensor(frame.images)[None]]
        return dict(data, return_loss=False, rescale=True, img=pictures, img_metas=[[self.meta_of(frame)]])
