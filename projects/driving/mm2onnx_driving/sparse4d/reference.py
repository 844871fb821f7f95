"""Sparse4D in PyTorch as a stepper."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera_reference import array
from mm2onnx_driving.common.instance_reference import InstanceReference, first_refinement, first_scores
from mm2onnx_driving.common.runtime.instances import InstanceBoxes
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.runtime.frames import Frame, StreamState

CACHED = ('cached_feature', 'cached_anchor', 'confidence')
LAST = dict(classification='pred_class_score', prediction='pred_anchor', quality='pred_quality_score')


class Sparse4DReference(InstanceReference):
    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        return dict(network=[(self.model, 'extract_feat'), (self.head, 'forward')])

    def forget(self) -> None:
        self.bank.reset()

    def memory(self) -> dict[str, np.ndarray]:
        tensors = {name: array(getattr(self.bank, name)) for name in CACHED}
        tensors['instance_id'] = array(self.bank.instance_id[:, : self.bank.num_temp_instances])
        return tensors | dict(prev_id=np.array([int(self.bank.prev_id)], np.int64))

    def remember(self, state: StreamState) -> None:
        for name in CACHED:
            setattr(self.bank, name, self.tensor(state.tensors[name]))
        ids = torch.full((1, self.bank.num_anchor), -1, dtype=torch.int64, device=self.device)
        ids[:, : self.bank.num_temp_instances] = torch.from_numpy(np.array(state.tensors['instance_id']))
        self.bank.instance_id, self.bank.prev_id = ids, int(state.tensors['prev_id'][0])
        self.bank.metas = self.moment(state.ego_pose, state.timestamp_s)

    def is_first(self, frame: Frame) -> bool:
        return self.bank.cached_anchor is None

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
        return {  # our layers are not called: our head taps these two by itself
            self.head: lambda inputs, outputs: dict(outputs, rows=inputs[0][0]),
            self.head.layers[-1]: lambda inputs, refined: dict(instance_feature=inputs[0]),
            first_refinement(self.head): lambda inputs, refined: dict(first_logits=refined[1]),
        }

    def tensors(self, values: Mapping[str, Any], was_reset: bool) -> dict[str, np.ndarray]:
        return dict(
            pred_instance_feature=array(values['instance_feature']),
            **{name: array(values[key][-1]) for key, name in LAST.items()},
            instance_id=array(values['instance_id']),
            confidence=array(self.bank.temp_confidence),
            first_scores=first_scores(self.bank, None if was_reset else values['first_logits']),
        )

    def results(self, results: Sequence[Mapping[str, Any]]) -> InstanceBoxes:
        return boxes_of_result(results[0]['img_bbox'])

    def head_outputs(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        rows = torch.arange(tensors['pred_anchor'].shape[1], device=self.device)[None]
        last = {key: [tensors[name]] for key, name in LAST.items()}
        return dict(last, instance_id=tensors.get('instance_id', rows))


def boxes_of_result(result: Mapping[str, Tensor]) -> InstanceBoxes:
    """Return upstream's boxes, best first, without vz; its `boxes_3d` (n, 10) have z of the centre."""
    boxes = array(result['boxes_3d'])[:, :9].astype(np.float32)
    boxes[:, 2] -= boxes[:, 5] * np.float32(0.5)
    scores, labels, ids, class_scores = (
        array(result[name]) for name in ('scores_3d', 'labels_3d', 'instance_ids', 'cls_scores')
    )
    return InstanceBoxes(boxes, scores, labels.astype(np.int64), ids.astype(np.int64), class_scores)
