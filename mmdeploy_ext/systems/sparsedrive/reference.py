"""SparseDrive in PyTorch as a stepper."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdeploy_ext.families.common.camera_reference import array
from mmdeploy_ext.families.common.instance_reference import InstanceReference, first_scores
from mmdeploy_ext.families.common.lidar_parts import Watch
from mmdeploy_ext.runtime.driving import DrivingScene, command_of
from mmdeploy_ext.runtime.frames import Frame, StreamState


class SparseDriveReference(InstanceReference):
    """Our model; `upstream.UpstreamReference` runs the repository's."""

    @property
    def bank(self) -> nn.Module:
        return self.head.det_head.instance_bank

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

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Watch]:
        encoder = self.head.motion_plan_head.instance_queue.ego_feature_encoder
        return {
            self.head: lambda inputs, outputs: dict(outputs=outputs, feature=inputs[0][0]),
            encoder: lambda inputs, output: dict(ego_feature=output.flatten(1)[:, None]),
        }

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        self.command = command_of(frame)
        return dict(super().data(frame, is_first), gt_ego_fut_cmd=self.tensor(frame.command)[None])

    def tensors(self, values: Mapping[str, Any], was_reset: bool) -> dict[str, np.ndarray]:
        found = dict(self.found(values), feature=values['feature'], ego_feature=values['ego_feature'])
        banks = dict(first=self.bank, first_line=self.head.map_head.instance_bank)
        logits = [None] * 2 if was_reset else [values['first_logits'], values['map_first_logits']]
        scores = [first_scores(*pair) for pair in zip(banks.values(), logits, strict=True)]
        named = {f'{name}_scores': of for name, of in zip(banks, scores, strict=True)}
        return {name: array(tensor) for name, tensor in found.items()} | named

    def found(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the outputs of the files by name."""
        return values['outputs'][0]

    def results(self, results: Sequence[Mapping[str, Any]]) -> DrivingScene:
        return results[0]['img_bbox']['scene']

    def head_outputs(self, tensors: Mapping[str, Tensor]) -> Any:
        return dict(tensors), torch.tensor([self.command])
