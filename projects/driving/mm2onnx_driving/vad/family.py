"""VAD: supported configs and models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mm2onnx_driving.common.bev_models import MEMORY, SETTINGS, BevFamily, check_memory
from mm2onnx_driving.common.camera_data import BevData, can_bus_entry
from mm2onnx_driving.common.camera_models import CameraModels
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mm2onnx_driving.vad.graphs import graphs
from mm2onnx_driving.vad.reference import VadReference
from mm2onnx_driving.vad.runtime import DECIDED, FORM, OUTPUTS, VadFacts, frame_with_command
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.common.detector_parts import part_cfg
from mmdeploy_ext.families.common.samples import result
from mmdeploy_ext.runtime.driving import DrivingScene
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.preparation import MultiViewRule

PUBLISHED = SETTINGS | dict(
    ego_his_encoder=None,
    ego_lcf_feat_idx=None,
    map_code_size=2,
    map_query_embed_type='instance_pts',
    motion_det_score=None,
    pe_normalization=True,
    query_thresh=0.0,
    query_use_fix_pad=False,
    use_pe=True,
)
"""Setting of the head -> the only supported value."""
ABSENT = SETTINGS | dict(
    ego_his_encoder=None, ego_lcf_feat_idx=None, motion_det_score=None, pe_normalization=True
)


MAPS = ('boston-seaport', 'singapore-hollandvillage', 'singapore-onenorth', 'singapore-queenstown')
MAP_LAYERS = (
    'polygon', 'line', 'node', 'drivable_area', 'road_segment', 'road_block', 'lane', 'ped_crossing',
    'walkway', 'stop_line', 'carpark_area', 'road_divider', 'lane_divider', 'traffic_light',
    'lane_connector',
)  # fmt: skip


def check_lines(cfg: Any) -> None:
    """Raise ConfigError for a memory that is not kept, and for a range that drops lines."""
    check_memory(cfg)
    head = part_cfg(cfg.model, 'pts_bbox_head')
    lines, limits = head['map_bbox_coder'], np.array(head['bbox_coder']['pc_range']).reshape(2, 3)[:, :2]
    kept, inside = np.array(lines['post_center_range']).reshape(2, 2, 2), limits[:, None]
    if lines.get('score_threshold') or (kept[0] > inside[0]).any() or (kept[1] < inside[1]).any():
        raise ConfigError(
            f'{cfg.filename}: model.pts_bbox_head.map_bbox_coder: post_center_range='
            f'{lines["post_center_range"]}, score_threshold={lines.get("score_threshold")}; expected a range '
            f'around pc_range, and no threshold, as in the published configs'
        )


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
    models = CameraModels(
        detectors=('VAD',),
        heads=('VADHead',),
        needed_settings=PUBLISHED,
        absent_settings=ABSENT,
        check_further=check_lines,
        camera_settings=lambda cfg: part_cfg(cfg.model, 'pts_bbox_head').get('transformer') or {},
    )
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
