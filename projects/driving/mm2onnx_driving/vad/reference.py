"""VAD in PyTorch as a stepper: our model and the repository's.

n boxes, M modes, T steps, V lines of P points.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from torch import Tensor, nn

from mm2onnx_driving.common.bev_reference import BevReference
from mm2onnx_driving.common.camera_reference import array
from mm2onnx_driving.vad.runtime import OUTPUTS
from mm2onnx_driving.vad.steps import bounds_of
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.runtime.driving import DrivingScene, command_of
from mmdeploy_ext.runtime.frames import Frame, StepResult
from mmdeploy_ext.runtime.geometry import exact_sigmoid
from mmdeploy_ext.spec.matching import TIE

TRUTH = [0.0, 20, -1, 2, 4, 2, 0, 0, 0]
"""A box that the repository's test path needs for its metrics."""


class VadReference(BevReference):
    outputs = OUTPUTS

    def step(self, frame: Frame) -> StepResult:
        result = super().step(frame)
        return dataclasses.replace(result, undecided=undecided(self.head, result.outputs))

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
        return {self.head: self.kept}

    def kept(self, inputs: Any, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._found = {name: outputs[name] for name in OUTPUTS[:-1]}
        plan = outputs['ego_fut_preds'][0, self.command][None].cumsum(1)
        return dict(self._found, ego_plan=plan)

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        self.command = command_of(frame)
        truth = LiDARInstance3DBoxes(torch.tensor([TRUTH]), box_dim=9)
        return dict(
            super().data(frame, is_first),
            ego_fut_cmd=[self.tensor(frame.command)[None, None, None]],
            gt_bboxes_3d=[[truth]],
            gt_labels_3d=[[torch.zeros(1, dtype=torch.int64)]],
            gt_attr_labels=[[torch.zeros(1, 34)]],
            ego_his_trajs=[torch.zeros(1, 1, 2, 2)],
            ego_fut_trajs=[torch.zeros(1, 1, 6, 2)],
            ego_lcf_feat=[torch.zeros(1, 1, 1, 9)],
            fut_valid_flag=[torch.tensor([False])],
        )

    def results(self, results: Sequence[Mapping[str, Any]]) -> DrivingScene:
        found = results[0]['pts_bbox']
        boxes = self.detections(found)
        steps = array(found['trajs_3d'])
        every = array(self._found['all_traj_preds'][-1, 0])
        rows = (steps[:, None] == every).all((2, 3)).argmax(1)
        scores = self._found['all_traj_cls_scores'][-1, 0][rows].double().sigmoid().float()
        steps = steps.reshape(*steps.shape[:2], -1, 2)
        command = int(found['ego_fut_cmd'].flatten().argmax())
        plan = array(found['ego_fut_preds'][command]).cumsum(0)
        return DrivingScene(
            boxes.boxes,
            boxes.scores,
            boxes.labels,
            trajectories=steps.cumsum(2) + boxes.boxes[:, None, None, :2],
            mode_scores=array(scores),
            line_points=array(found['map_pts_3d']),
            line_scores=array(found['map_scores_3d']),
            line_labels=array(found['map_labels_3d']),
            plan_points=plan[None],
            plan_scores=np.ones(1, np.float32),
            plan_mode=np.zeros(1, np.int64),
            plan_final=plan,
        )

    def head_outputs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._found = {**self._found, **tensors}
        return dict(tensors, map_all_bbox_preds=bounds_of(tensors['map_all_pts_preds']))


def undecided(head: nn.Module, outputs: Mapping[str, np.ndarray]) -> int:
    """Return the pairs of object and line within `matching.TIE` of `map_thresh` or `dis_thresh`."""
    logits, points = outputs['map_all_cls_scores'][-1, 0], outputs['map_all_pts_preds'][-1, 0]
    scores = exact_sigmoid(logits.max(-1)).astype(np.float64)
    nearest = points[np.arange(len(points)), np.linalg.norm(points, axis=-1).argmin(1)]
    low, high = np.split(np.array(head.pc_range), 2)
    centres = (outputs['all_bbox_preds'][-1, 0, :, :2] - low[:2]) / (high - low)[:2]
    apart = np.linalg.norm(centres[:, None] - nearest, axis=-1)
    margins = np.minimum(scores - head.map_thresh, head.dis_thresh - apart)
    return int((np.abs(margins) <= TIE).sum())
