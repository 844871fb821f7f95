"""SparseDrive in PyTorch as a stepper."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera_reference import array
from mm2onnx_driving.common.instance_reference import InstanceReference, first_scores
from mm2onnx_driving.layers.sparse_instances.steps import CENTRE, COSINE, LOG_SIZE, SINE
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.runtime.driving import DrivingScene, command_of
from mmdeploy_ext.runtime.frames import Frame, StreamState

COLLISION, CLEAR_M = 'a best plan that collides', 4.0
"""Title of a case, and distance from an agent of 1 m at which no plan meets it, or more."""


class SparseDriveReference(InstanceReference):
    """Our model; `upstream.UpstreamReference` runs the repository's."""

    @property
    def notes(self) -> list[str]:
        return [*super().notes, "not compared: plans for other commands than the frame's: no file has them"]

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

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
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
        found = results[0]['img_bbox']
        boxes = np.array(found['boxes_3d'][:, :9], np.float32)
        boxes[:, 2] -= boxes[:, 5] * np.float32(0.5)
        plans, final = (np.array(found[name], np.float32) for name in ('planning', 'final_planning'))
        plans = plans[self.command]
        return DrivingScene(
            boxes,
            np.array(found['scores_3d']),
            np.array(found['labels_3d'], np.int64),
            np.array(found['instance_ids'], np.int64),
            np.array(found['trajs_3d']),
            np.array(found['trajs_score']),
            line_points=np.array(found['vectors'], np.float32),
            line_scores=np.array(found['scores']),
            line_labels=np.array(found['labels']),
            plan_points=plans,
            plan_scores=np.array(found['planning_score'][self.command]),
            plan_mode=np.abs(plans - final).max((1, 2)).argmin(keepdims=True),
            plan_final=final,
        )

    def decode_cases(self, outputs: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray] | None]:
        """Return outputs in which a sure agent stands in the best plan's way, but not in all plans'."""
        return {COLLISION: colliding(outputs)}

    def head_outputs(self, tensors: Mapping[str, Tensor]) -> Any:
        return dict(tensors), torch.tensor([self.command])


def colliding(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Return outputs in which the best plan ends apart from all others, at one sure agent; None: one plan."""
    changed = {name: np.array(values) for name, values in outputs.items()}
    scores, steps = changed['plan_scores'][0], changed['plan_steps'][0]
    if len(scores) == 1:
        return None
    plans = steps.reshape(len(steps), -1, 2).cumsum(1)
    best = scores.argmax()
    steps[best, -2] += plans[..., 0].max() + CLEAR_M - plans[best, -1, 0]
    logits = changed['pred_class_score'][0]
    logits -= logits.max() + 2
    agent = logits.max(-1).argmin()
    logits[agent, 0] = 4.0
    anchor = changed['pred_anchor'][0, agent]
    anchor[CENTRE.start : CENTRE.start + 2] = steps[best].reshape(-1, 2).sum(0)
    anchor[LOG_SIZE], anchor[[SINE, COSINE]] = 0.0, (0.0, 1.0)
    changed['motion_steps'][0, agent] = 0.0
    return changed
