"""The repository's SparseDrive as a stepper: three modules hold the memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mm2onnx_driving.common.camera_reference import array
from mm2onnx_driving.common.instance_reference import first_refinement
from mm2onnx_driving.sparsedrive.reference import SparseDriveReference
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.runtime.frames import Frame, StreamState

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
