"""SparseDrive in PyTorch as a stepper."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mm2onnx_driving.common.camera_reference import array
from mm2onnx_driving.common.instances import InstanceReference, first_refinement, first_scores
from mm2onnx_driving.layers.sparse_instances import CENTRE, COSINE, LOG_SIZE, SINE
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


# The repository's SparseDrive as a stepper: three modules hold the memory.


ABSENT = -2
"""Unused instance id."""
LAST = dict(prediction='pred_anchor', classification='pred_class_score', quality='pred_quality_score')


class UpstreamReference(SparseDriveReference):
    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        head = model.head
        self.line_bank = head.map_head.instance_bank
        self.queue = head.motion_plan_head.instance_queue
        super().__init__(model, notes)

    def forget(self) -> None:
        for part in (self.bank, self.line_bank, self.queue):
            part.reset()

    def memory(self) -> dict[str, np.ndarray]:
        bank, lines, queue = self.bank, self.line_bank, self.queue
        kept = bank.instance_id[:, : bank.num_temp_instances]
        rows = (kept[0, :, None] == queue.prev_instance_id[0]).int().argmax(1)
        slots = queue.queue_length - 1
        period = queue.period[:, rows] * (queue.prev_confidence[:, rows] > queue.tracking_threshold)

        def newest(entries: list[Tensor], period: Tensor) -> Tensor:
            stacked = torch.stack(entries[-slots:], 2)
            stacked = pad(stacked, (0, 0, slots - stacked.shape[2], 0))
            return stacked * (torch.arange(slots, 0, -1, device=self.device) <= period[..., None])[..., None]

        tensors = dict(
            feature=bank.cached_feature,
            anchor=bank.cached_anchor,
            confidence=bank.confidence,
            instance_id=kept,
            prev_id=torch.as_tensor(bank.prev_id).reshape(1),
            queue_feature=newest([entry[:, rows] for entry in queue.instance_feature_queue], period),
            queue_anchor=newest([entry[:, rows] for entry in queue.anchor_queue], period),
            queue_period=period,
            map_feature=lines.cached_feature,
            map_anchor=lines.cached_anchor,
            map_confidence=lines.confidence,
            ego_feature=newest(queue.ego_feature_queue, queue.ego_period)[:, 0],
            ego_anchor=newest(queue.ego_anchor_queue, queue.ego_period)[:, 0],
            ego_period=queue.ego_period[0],
            ego_status=queue.prev_ego_status,
        )
        return {name: array(tensor) for name, tensor in tensors.items()}

    def remember(self, state: StreamState) -> None:
        bank, lines, queue = self.bank, self.line_bank, self.queue
        tensors = self.on_device(state)
        moment = self.moment(state.ego_pose, state.timestamp_s)
        missing = bank.num_anchor - bank.num_temp_instances
        for part, prefix in ((bank, ''), (lines, 'map_')):
            part.cached_feature, part.cached_anchor = tensors[f'{prefix}feature'], tensors[f'{prefix}anchor']
            part.confidence, part.metas = tensors[f'{prefix}confidence'], moment
        bank.instance_id = pad(tensors['instance_id'], (0, missing), value=-1)
        bank.prev_id = tensors['prev_id'][0]
        period = pad(tensors['queue_period'], (0, missing))
        queue.metas, queue.period, queue.prev_confidence = moment, period, (period > 0).float()
        queue.prev_instance_id = pad(tensors['instance_id'], (0, missing), value=ABSENT)
        features, anchors = (
            [*pad(tensors[f'queue_{name}'], (0, 0, 0, 0, 0, missing)).unbind(2)]
            for name in ('feature', 'anchor')
        )
        queue.instance_feature_queue, queue.anchor_queue = features, anchors
        queue.ego_feature_queue = [*tensors['ego_feature'][:, None].unbind(2)]
        queue.ego_anchor_queue = [*tensors['ego_anchor'][:, None].unbind(2)]
        queue.ego_period, queue.prev_ego_status = tensors['ego_period'][None], tensors['ego_status']

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
        hooks = dict(super().hooks(frame))
        for head, title in ((self.head.det_head, ''), (self.head.map_head, 'map_')):
            first = first_refinement(head)
            hooks[first] = lambda inputs, refined, title=title: {f'{title}first_logits': refined[1]}
        return hooks

    def found(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        detected, lines, motion, plan = values['outputs']
        plans = (
            plan[key][-1].reshape(1, 3, self.head.motion_plan_head.ego_fut_mode, -1)
            for key in ('classification', 'prediction')
        )
        plan_scores, plan_steps = (values[:, self.command] for values in plans)
        return dict(
            {name: detected[key][-1] for key, name in LAST.items()},
            map_points=lines['prediction'][-1],
            map_scores=lines['classification'][-1],
            motion_scores=motion['classification'][-1],
            motion_steps=motion['prediction'][-1].flatten(2),
            plan_scores=plan_scores[..., 0],
            plan_steps=plan_steps,
            instance_id=detected['instance_id'],
            confidence=self.bank.temp_confidence,
            line_confidence=self.line_bank.temp_confidence,
        )

    def head_outputs(self, tensors: Mapping[str, Tensor]) -> Any:
        planner = self.head.motion_plan_head
        rows = torch.arange(tensors['pred_anchor'].shape[1], device=self.device)[None]
        modes, steps = planner.fut_mode, planner.fut_ts

        def of_command(values: Tensor) -> Tensor:
            every = values.new_zeros(1, 3, *values.shape[1:])
            every[:, self.command] = values
            return every.flatten(1, 2)[:, None]

        return (
            dict(
                {key: [tensors[name]] for key, name in LAST.items()},
                instance_id=tensors.get('instance_id', rows),
            ),
            dict(prediction=[tensors['map_points']], classification=[tensors['map_scores']]),
            dict(
                classification=[tensors['motion_scores']],
                prediction=[tensors['motion_steps'].unflatten(-1, (modes, steps, 2))],
                period=self.queue.period,
                anchor_queue=self.queue.anchor_queue,
            ),
            dict(
                classification=[of_command(tensors['plan_scores'])],
                prediction=[of_command(tensors['plan_steps'].unflatten(-1, (-1, 2)))],
                period=self.queue.ego_period,
                anchor_queue=self.queue.ego_anchor_queue,
            ),
        )
