"""VAD: supported configs and models."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from torch import Tensor, nn

from mm2onnx_driving.common.bev import (
    EXPECTED,
    MEMORY,
    BevFamily,
    BevFrame,
    BevReference,
    frame_spec,
    with_sampling,
)
from mm2onnx_driving.common.camera import BevData, camera_graphs, can_bus_entry
from mm2onnx_driving.common.camera_reference import array
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mm2onnx_driving.vad.runtime import DECIDED, FORM, OUTPUTS, VadFacts, frame_with_command
from mm2onnx_driving.vad.steps import LINE_BOUNDS, bounds_of, predict
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.base import ABSENT
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.families.common.samples import result
from mmdeploy_ext.runtime.driving import DrivingScene, command_of
from mmdeploy_ext.runtime.frames import Frame, StepResult
from mmdeploy_ext.runtime.geometry import exact_sigmoid
from mmdeploy_ext.spec.matching import TIE
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.preparation import MultiViewRule
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

# VAD's graph, of plain operators, with the motion of the car and the command as inputs.
#
# Glossary: N cameras, H, W network input in pixels, Q cells of the view, C channels, L decoder layers, R
# objects, M modes, T steps, V lines of P points.


VALUES = ColumnGroup(rtol=0.0, atol=5e-4)


class VadFrame(BevFrame):
    """Pictures, rig, motion, last view and command to the present view and `runtime.OUTPUTS`."""

    shifts_present = True

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs; the last input, `command` (1,) int64, chooses the plan."""
        *given, command = inputs
        *found, plans = super().forward(*given)
        return *found, plans, plans[0].index_select(0, command).cumsum(1)

    def predictions(self, view: Tensor, operators: ModuleType) -> tuple[Tensor, ...]:
        outputs = predict(self.model.pts_bbox_head, view, operators)
        return outputs[:LINE_BOUNDS] + outputs[LINE_BOUNDS + 1 :]


def further_specs(model: nn.Module) -> tuple[TensorSpec, ...]:
    """Return the contracts of `model.steps.OUTPUTS` after the boxes."""
    head = model.pts_bbox_head
    layers, lines = len(head.map_cls_branches), head.map_instance_embedding.num_embeddings
    agents = (len(head.cls_branches), 1, head.query_embedding.num_embeddings, head.fut_mode)
    classes, points = head.map_cls_branches[-1][-1].out_features, head.map_pts_embedding.num_embeddings
    layered, shares = ', of all decoder layers', 'relative to the sides of the view'

    def tensor(name: str, axes: tuple[int, ...], meaning: str, unit: str = '') -> TensorSpec:
        return TensorSpec(name, 'float32', axes, meaning, unit, groups=(VALUES,), single=True)

    steps = "x y of the trajectories' steps, mode by mode (m); the same for all layers"
    return (
        tensor('all_traj_preds', (*agents, 2 * head.fut_ts), steps),
        tensor(
            'all_traj_cls_scores', agents, 'mode logits of the trajectories; the same for all layers', 'logit'
        ),
        tensor('map_all_cls_scores', (layers, 1, lines, classes), f'class logits of lines{layered}', 'logit'),
        tensor('map_all_bbox_preds', (layers, 1, lines, 4), f'x y w h of lines {shares}{layered}'),
        tensor(
            'map_all_pts_preds',
            (layers, 1, lines, points, 2),
            f'x y of the points of lines {shares}{layered}',
        ),
        tensor('ego_fut_preds', (1, head.ego_fut_mode, head.fut_ts, 2), 'x y of the steps of the plans (m)'),
    )


def spec(model: nn.Module) -> GraphSpec:
    further = [tensor for tensor in further_specs(model) if tensor.name != 'map_all_bbox_preds']
    axes, meaning = (1, *further[-1].axes[2:]), "x y of the points of the command's plan (m)"
    plan = dataclasses.replace(further[-1], name='ego_plan', axes=axes, meaning=meaning)
    command = TensorSpec('command', 'int64', (1,), 'command: 0 right, 1 left, 2 straight', single=True)
    frame = frame_spec(model, 'vad/portable', (*further, plan))
    return dataclasses.replace(frame, inputs=(*frame.inputs, command))


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    module = VadFrame(model, tuple(model.input_sizes[1:]))
    return [with_sampling(*camera_graphs(model, options, [(FORM, module, spec(model))]), options)]


# VAD in PyTorch as a stepper: our model and the repository's.
#
# n boxes, M modes, T steps, V lines of P points.


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


MAPS = ('boston-seaport', 'singapore-hollandvillage', 'singapore-onenorth', 'singapore-queenstown')
MAP_LAYERS = (
    'polygon', 'line', 'node', 'drivable_area', 'road_segment', 'road_block', 'lane', 'ped_crossing',
    'walkway', 'stop_line', 'carpark_area', 'road_divider', 'lane_divider', 'traffic_light',
    'lane_connector',
)  # fmt: skip


def entries(rng: np.random.Generator) -> dict[str, Any]:
    """Return an info's entries for VAD's data set: one object, which its metrics need."""
    return dict(
        can_bus_entry(rng),
        gt_ego_fut_cmd=np.eye(3)[rng.integers(3)],
        gt_ego_his_trajs=np.zeros((2, 2)),
        gt_ego_fut_trajs=np.zeros((6, 2)),
        gt_ego_fut_masks=np.zeros(6),
        gt_ego_lcf_feat=np.zeros(9),
        fut_valid_flag=False,
        map_location=MAPS[0],
        gt_boxes=np.array([[0, 20, -1, 2, 4, 2, 0.0]]),
        gt_names=np.array(['car']),
        gt_velocity=np.zeros((1, 2)),
        num_lidar_pts=np.ones(1, int),
        valid_flag=np.ones(1, bool),
        gt_agent_fut_trajs=np.zeros((1, 12)),
        gt_agent_fut_masks=np.zeros((1, 6)),
        gt_agent_fut_goal=np.zeros(1),
        gt_agent_lcf_feat=np.zeros((1, 9)),
        gt_agent_fut_yaw=np.zeros((1, 6)),
    )


class VadData(BevData):
    """Generated infos come with empty maps of nuScenes, which the repository's data set opens."""

    compared = OUTPUTS
    needed = ('command',)
    frame_of = staticmethod(frame_with_command)
    dataset_type = 'VADCustomNuScenesDataset'
    entries = staticmethod(entries)

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        places = folder / 'maps/expansion'
        places.mkdir(parents=True, exist_ok=True)
        lists: dict[str, Any] = {name: [] for name in MAP_LAYERS}
        empty = dict(lists, version='1.3', canvas_edge=[1, 1], arcline_path_3={}, connectivity={})
        for name in MAPS:
            (places / f'{name}.json').write_text(json.dumps(empty), encoding='utf-8')
        return super().generated_dataset(folder, cfg, rule)


class VadFamily(BevFamily):
    name, task, coder = 'vad', 'driving', 'CustomNMSFreeCoder'
    detectors, heads = ('VAD',), ('VADHead',)
    expects = EXPECTED | {
        'pts_bbox_head.ego_his_encoder': (ABSENT, None),
        'pts_bbox_head.ego_lcf_feat_idx': (ABSENT, None),
        'pts_bbox_head.map_code_size': (2,),
        'pts_bbox_head.map_query_embed_type': ('instance_pts',),
        'pts_bbox_head.motion_det_score': (ABSENT, None),
        'pts_bbox_head.pe_normalization': (ABSENT, True),
        'pts_bbox_head.query_thresh': (0.0,),
        'pts_bbox_head.query_use_fix_pad': (False,),
        'pts_bbox_head.use_pe': (True,),
    }
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_pts', '.extract_feat', '.extract_img_feat',
        'map_pred2result', 'assign_pred_to_gt_vip3d', 'compute_*', 'pts_bbox_head.forward', 'get_bboxes',
        'select_and_pad_*', 'map_transform_box', 'decode', 'decode_single', '*transformer.forward',
        'get_bev_features', '*transformer.encoder.forward', 'get_reference_points', 'point_sampling',
        '*decoder.forward', '*encoder.layers.?.forward', '*attentions.?.forward',
        '*deformable_attention.forward', 'grid_mask.forward',
    )  # fmt: skip
    files = (FORM,)
    ignored_prefixes = ('pts_bbox_head.code_weights', 'pts_bbox_head.map_code_weights')
    data = VadData()
    reference, graphs = staticmethod(VadReference), staticmethod(graphs)

    def check_further(self, cfg: Any) -> None:
        """Raise ConfigError for a range that drops lines."""
        head = self.head_of(cfg)
        lines, limits = head['map_bbox_coder'], np.array(head['bbox_coder']['pc_range']).reshape(2, 3)[:, :2]
        kept, inside = np.array(lines['post_center_range']).reshape(2, 2, 2), limits[:, None]
        if lines.get('score_threshold') or (kept[0] > inside[0]).any() or (kept[1] < inside[1]).any():
            raise ConfigError(
                f'{cfg.filename}: model.pts_bbox_head.map_bbox_coder: post_center_range='
                f'{lines["post_center_range"]}, score_threshold={lines.get("score_threshold")}; expected a '
                'range around pc_range, and no threshold, as in the published configs'
            )

    def facts(self, model: nn.Module) -> VadFacts:
        head = model.pts_bbox_head
        lines = getattr(head, 'max_lines', None) or head.map_bbox_coder.max_num
        corner = tuple(float(low) for low in head.pc_range[:2])
        return VadFacts(**self.view_facts(model), max_lines=int(lines), corner=corner)

    def memory_spec(self, facts: VadFacts) -> MemorySpec:
        outputs = dict(bev_embed='bev_embed')
        return MemorySpec(
            tensors=MEMORY, outputs=outputs, needed=OUTPUTS[1:], per_query=PREDICTIONS, decided=DECIDED
        )

    def result(self, detections: DrivingScene) -> dict[str, Any]:
        (entry,) = result(detections).values()
        return entry | dict(
            trajs_3d=torch.from_numpy(detections.trajectories),
            map_pts_3d=torch.from_numpy(detections.lines.points),
            map_scores_3d=torch.from_numpy(detections.lines.scores),
            map_labels_3d=torch.from_numpy(detections.lines.labels),
            ego_fut_preds=torch.from_numpy(detections.plan.points),
        )
