"""SparseDrive in PyTorch as a stepper."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdeploy_ext.families.common.camera_reference import CameraReference, array
from mmdeploy_ext.families.common.lidar_parts import Watch
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.runtime.driving import DrivingScene, command_of
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.synthetic.moments import special_drive
from mmdeploy_ext.systems.sparsedrive.runtime import SparseDriveOnnx

GAPS_S = (0.4, 1.9999, 2.0, 2.0001, -3.5, 0.0, -0.5)
"""Seconds between frames: around the published `max_time_interval` of 2 s, zero, and back in time."""


class SparseDriveReference(CameraReference):
    """Our model; `upstream.UpstreamReference` runs the repository's."""

    reads = SparseDriveOnnx.reads

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterator[Frame]:
        return special_drive(sample, GAPS_S)

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        return dict(features=[(self.model, 'extract_feat')], heads=[(self.head, 'forward')])

    def forget(self) -> None:
        self.head.reset()

    def memory(self) -> dict[str, np.ndarray]:
        return {name: array(tensor) for name, tensor in self.head.memory.items()}

    def remember(self, state: StreamState) -> None:
        self.head.metas = self.moment(state.ego_pose, state.timestamp_s)
        self.head.memory = self.on_device(state)

    def on_device(self, state: StreamState) -> dict[str, Tensor]:
        return {
            name: torch.from_numpy(np.array(value)).to(self.device) for name, value in state.tensors.items()
        }

    def is_first(self, frame: Frame) -> bool:
        return self._last is None

    def was_reset(self, is_first: bool) -> bool:
        return is_first or not bool(self.head.det_head.instance_bank.mask[0])

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Watch]:
        encoder = self.head.motion_plan_head.instance_queue.ego_feature_encoder
        return {
            self.head: lambda inputs, outputs: dict(outputs=outputs, feature=inputs[0][0]),
            encoder: lambda inputs, output: dict(ego_feature=output.flatten(1)[:, None]),
        }

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        height, width = frame.images.shape[2:]
        self.command = command_of(frame)
        return dict(
            self.moment(frame.ego_pose, frame.timestamp_s),
            img=self.tensor(frame.images)[None],
            projection_mat=self.tensor(frame.lidar2img)[None],
            image_wh=self.tensor([[[width, height]] * len(frame.images)]),
            gt_ego_fut_cmd=self.tensor(frame.command)[None],
        )

    def moment(self, ego_pose: np.ndarray, timestamp_s: float) -> dict[str, Any]:
        pose = np.array(ego_pose, np.float64)
        time = torch.tensor([timestamp_s], dtype=torch.float64, device=self.device)
        return dict(timestamp=time, img_metas=[dict(T_global=pose, T_global_inv=np.linalg.inv(pose))])

    def tensors(self, values: Mapping[str, Any], was_reset: bool) -> dict[str, np.ndarray]:
        found = dict(self.found(values), feature=values['feature'], ego_feature=values['ego_feature'])
        bank = self.head.det_head.instance_bank
        scores = np.full((1, bank.num_anchor), np.nan)
        if not was_reset:
            best = array(values['first_logits'].max(-1).values.double().sigmoid())[0]
            scores[0, bank.num_temp_instances :] = -np.sort(-best)[: len(best) - bank.num_temp_instances]
        return {name: array(tensor) for name, tensor in found.items()} | dict(first_scores=scores)

    def found(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the outputs of the files by name."""
        return values['outputs'][0]

    def results(self, results: Sequence[Mapping[str, Any]]) -> DrivingScene:
        return results[0]['img_bbox']['scene']

    def head_outputs(self, tensors: Mapping[str, Tensor]) -> Any:
        return dict(tensors), torch.tensor([self.command])
