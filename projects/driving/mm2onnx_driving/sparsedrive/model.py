"""SparseDrive's decoders, detector and data set at test time.

Source: swc-17/SparseDrive ec0225d, models/{sparsedrive,sparsedrive_head}.py (names),
models/{detection3d,map,motion}/decoder.py (algorithm).
Glossary: A instances, M modes of an agent, K modes and S steps of the plan; yaws counter-clockwise from x.
"""

from collections.abc import Mapping, Sequence
from math import pi
from typing import Any

import numpy as np
import torch
from mmcv.cnn import Scale
from mmcv.cnn.bricks.registry import (
    ATTENTION,
    FEEDFORWARD_NETWORK,
    NORM_LAYERS,
    PLUGIN_LAYERS,
    POSITIONAL_ENCODING,
)
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.runner.base_module import BaseModule
from mmcv.utils import build_from_cfg
from mmdet.core.bbox.builder import BBOX_CODERS
from mmdet.datasets import DATASETS
from mmdet.models import DETECTORS, HEADS, build_backbone, build_head, build_neck
from torch import Tensor, nn

from mm2onnx_driving.layers.datasets import NuScenes3DDetTrackDataset
from mm2onnx_driving.layers.sparse_instances import (
    CENTRE,
    COSINE,
    LOG_SIZE,
    SINE,
    VELOCITY,
    Features,
    Pictures,
    flatten_maps,
    normalised_layers,
)
from mm2onnx_driving.sparsedrive.steps import Moment, ego_feature, run_frame
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# Layers of SparseDrive's heads; without `forward` if `steps.py` runs them.
#
# Names as in swc-17/SparseDrive ec0225d, models/{instance_bank,attention}.py,
# models/{detection3d,map,motion}.


BESIDE = ('SparseDriveHead',)
EGO_ANCHOR = (0, 0.5, -1.84 + 1.56 / 2, np.log(4.08), np.log(1.73), np.log(1.56), 1, 0, 0, 0, 0)
REGISTRIES = dict(
    temp_gnn=('temp_graph_model', ATTENTION),
    gnn=('graph_model', ATTENTION),
    cross_gnn=('cross_graph_model', ATTENTION),
    norm=('norm_layer', NORM_LAYERS),
    deformable=('deformable_model', ATTENTION),
    ffn=('ffn', FEEDFORWARD_NETWORK),
    refine=('refine_layer', PLUGIN_LAYERS),
)
"""Operation -> key of the head's config, and registry."""


class Settings:
    """The settings of a decoder."""

    num_output, score_threshold, use_rescore = 300, None, False

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)


@registered_if_named(BBOX_CODERS, beside=BESIDE)
class SparseBox3DDecoder(Settings):
    pass


@registered_if_named(BBOX_CODERS)
class SparseBox3DMotionDecoder(Settings):
    pass


@registered_if_named(BBOX_CODERS)
class SparsePoint3DDecoder(Settings):
    pass


@registered_if_named(BBOX_CODERS)
class HierarchicalPlanningDecoder(Settings):
    pass


@registered_if_named(ATTENTION)
class MultiheadFlashAttention(MultiheadAttention):
    """mmcv's attention with the same parameters."""


@registered_if_named(PLUGIN_LAYERS, beside=BESIDE)
class InstanceBank(BaseModule):
    def __init__(
        self,
        num_anchor: int,
        embed_dims: int,
        anchor: str,
        num_temp_instances: int,
        default_time_interval: float = 0.5,
        confidence_decay: float = 0.6,
        max_time_interval: float = 2,
        **training: Any,
    ) -> None:
        super().__init__()
        anchors = np.load(anchor)[:num_anchor]
        self.anchor = nn.Parameter(torch.tensor(anchors.reshape(len(anchors), -1), dtype=torch.float32))
        self.instance_feature = nn.Parameter(torch.zeros(len(anchors), embed_dims))
        self.num_anchor, self.embed_dims, self.num_temp_instances = (
            len(anchors),
            embed_dims,
            num_temp_instances,
        )
        self.default_time_interval, self.max_time_interval = default_time_interval, max_time_interval
        self.confidence_decay = confidence_decay


@registered_if_named(POSITIONAL_ENCODING)
class SparsePoint3DEncoder(BaseModule):
    def __init__(self, embed_dims: int, num_sample: int = 20, coords_dim: int = 2) -> None:
        super().__init__()
        self.pos_fc = nn.Sequential(*normalised_layers(embed_dims, 1, 2, num_sample * coords_dim))


@registered_if_named(PLUGIN_LAYERS)
class SparsePoint3DKeyPointsGenerator(BaseModule):
    def __init__(
        self,
        embed_dims: int = 256,
        num_sample: int = 20,
        num_learnable_pts: int = 0,
        fix_height: Sequence[float] = (0,),
        ground_height: float = 0,
    ) -> None:
        super().__init__()
        self.num_learnable_pts, self.ground_height = num_learnable_pts, ground_height
        self.fix_height = np.array(fix_height)
        self.num_pts = num_sample * len(fix_height) * num_learnable_pts
        self.learnable_fc = nn.Linear(embed_dims, 2 * self.num_pts)


@registered_if_named(PLUGIN_LAYERS)
class SparsePoint3DRefinementModule(BaseModule):
    def __init__(
        self, embed_dims: int = 256, num_sample: int = 20, coords_dim: int = 2, num_cls: int = 3
    ) -> None:
        super().__init__()
        count = num_sample * coords_dim
        last = [nn.Linear(embed_dims, count), Scale([1.0] * count)]
        self.layers = nn.Sequential(*normalised_layers(embed_dims, 2, 2), *last)
        self.cls_layers = nn.Sequential(*normalised_layers(embed_dims, 1, 2), nn.Linear(embed_dims, num_cls))


@registered_if_named(PLUGIN_LAYERS)
class MotionPlanningRefinementModule(BaseModule):
    def __init__(
        self,
        embed_dims: int = 256,
        fut_ts: int = 12,
        fut_mode: int = 6,
        ego_fut_ts: int = 6,
        ego_fut_mode: int = 3,
    ) -> None:
        super().__init__()
        sizes = dict(motion_cls=1, motion_reg=2 * fut_ts, plan_cls=1, plan_reg=2 * ego_fut_ts, plan_status=10)
        for name, size in sizes.items():
            layers = normalised_layers(embed_dims, 1, 2)
            if not name.endswith('cls'):
                layers = [part for _ in range(2) for part in (nn.Linear(embed_dims, embed_dims), nn.ReLU())]
            self.add_module(f'{name}_branch', nn.Sequential(*layers, nn.Linear(embed_dims, size)))


@registered_if_named(PLUGIN_LAYERS)
class InstanceQueue(BaseModule):
    def __init__(
        self,
        embed_dims: int,
        queue_length: int,
        tracking_threshold: float,
        feature_map_scale: Sequence[float],
    ) -> None:
        super().__init__()
        self.queue_length, self.tracking_threshold = queue_length, tracking_threshold
        layers: list[nn.Module] = []
        for stride in (1, 2):
            layers += [
                nn.Conv2d(embed_dims, embed_dims, 3, stride, 1, bias=False),
                nn.BatchNorm2d(embed_dims),
            ]
        kernel = tuple(int(side / 2) for side in feature_map_scale)
        self.ego_feature_encoder = nn.Sequential(*layers, nn.ReLU(), nn.AvgPool2d(kernel))
        self.ego_anchor = nn.Parameter(torch.tensor([EGO_ANCHOR], dtype=torch.float32), requires_grad=False)


class Operations(BaseModule):
    """Layers in the order of a config."""

    def __init__(
        self, operation_order: Sequence[str], channels: int, decouple_attn: bool, configs: dict
    ) -> None:
        super().__init__()
        self.operation_order = list(operation_order)
        parts = ((configs[REGISTRIES[kind][0]], REGISTRIES[kind][1]) for kind in operation_order)
        self.layers = nn.ModuleList(build_from_cfg(dict(cfg), registry) for cfg, registry in parts)
        sizes = (channels, 2 * channels), (2 * channels, channels)
        self.fc_before, self.fc_after = (
            nn.Linear(*size, bias=False) if decouple_attn else nn.Identity() for size in sizes
        )


@registered_if_named(HEADS, beside=BESIDE)
class Sparse4DHead(Operations):
    def __init__(
        self,
        instance_bank: dict,
        anchor_encoder: dict,
        operation_order: Sequence[str],
        decoder: dict,
        num_single_frame_decoder: int = -1,
        decouple_attn: bool = True,
        **configs: Any,
    ) -> None:
        super().__init__(operation_order, instance_bank['embed_dims'], decouple_attn, configs)
        self.num_single_frame_decoder = num_single_frame_decoder
        self.instance_bank = build_from_cfg(instance_bank, PLUGIN_LAYERS)
        self.anchor_encoder = build_from_cfg(anchor_encoder, POSITIONAL_ENCODING)
        self.decoder = build_from_cfg(decoder, BBOX_CODERS)


@registered_if_named(HEADS)
class MotionPlanningHead(Operations):
    def __init__(
        self,
        motion_anchor: str,
        plan_anchor: str,
        embed_dims: int,
        instance_queue: dict,
        operation_order: Sequence[str],
        planning_decoder: dict,
        fut_ts: int = 12,
        fut_mode: int = 6,
        ego_fut_ts: int = 6,
        ego_fut_mode: int = 3,
        decouple_attn: bool = False,
        num_det: int = 50,
        num_map: int = 10,
        **configs: Any,
    ) -> None:
        super().__init__(operation_order, embed_dims, decouple_attn, configs)
        self.fut_ts, self.fut_mode, self.ego_fut_ts, self.ego_fut_mode = (
            fut_ts,
            fut_mode,
            ego_fut_ts,
            ego_fut_mode,
        )
        self.num_det, self.num_map = num_det, num_map
        self.instance_queue = build_from_cfg(instance_queue, PLUGIN_LAYERS)
        self.planning_decoder = build_from_cfg(planning_decoder, BBOX_CODERS)
        for name, path in dict(motion_anchor=motion_anchor, plan_anchor=plan_anchor).items():
            values = torch.tensor(np.load(path), dtype=torch.float32)
            self.register_parameter(name, nn.Parameter(values, requires_grad=False))
            encoder = [*normalised_layers(embed_dims, 1, 1), nn.Linear(embed_dims, embed_dims)]
            self.add_module(f'{name}_encoder', nn.Sequential(*encoder))


# ---- decoders: outputs of the heads to boxes with trajectories, lines and the plan


EGO_LENGTH_M, EGO_WIDTH_M = 4.08 * 1.1, 1.73 * 1.1
HEAD_ON = pi / 2
"""First yaw of the car."""
SHIFT_M = 0.5
SURE_FROM, STANDING_BELOW_M, PENALTY = 0.5, 0.5, -999.0


def best_first(scores: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the best scores (n,) and their indices, the first of equals first."""
    values, order = scores.sort(descending=True, stable=True)
    return values[:count], order[:count]


def boxes_with_trajectories(outputs: Mapping[str, Tensor], count: int, modes: int) -> dict[str, Tensor]:
    """Return `count` boxes (n, 10), their scores with the centerness, labels, ids, and ways (n, M, T, 2)."""
    scores, labels = outputs['pred_class_score'][0].sigmoid().max(-1)
    scores, rows = best_first(scores, count)
    centerness = outputs['pred_quality_score'][0, rows, 0].sigmoid()
    scores, order = best_first(scores * centerness)
    rows = rows[order]
    anchor = outputs['pred_anchor'][0, rows]
    yaw = torch.atan2(anchor[:, SINE], anchor[:, COSINE])[:, None]
    ways = outputs['motion_steps'][0, rows].unflatten(1, (modes, -1, 2)).cumsum(2)
    return dict(
        boxes_3d=torch.cat([anchor[:, CENTRE], anchor[:, LOG_SIZE].exp(), yaw, anchor[:, VELOCITY]], 1),
        scores_3d=scores,
        labels_3d=labels[rows],
        instance_ids=outputs['instance_id'][0, rows] if 'instance_id' in outputs else rows,
        trajs_3d=ways + anchor[:, None, None, :2],
        trajs_score=outputs['motion_scores'][0, rows].sigmoid(),
    )


def map_lines(points: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """Return as many lines (n, P, 2) as there are queries; a query may give a line of several classes."""
    scores, pairs = best_first(logits.sigmoid().flatten(), len(points))
    rows, labels = pairs // logits.shape[1], pairs % logits.shape[1]
    return dict(vectors=points[rows].unflatten(1, (-1, 2)), scores=scores, labels=labels)


def plan_of(outputs: Mapping[str, Tensor], modes: int, use_rescore: bool) -> dict[str, Tensor]:
    """Return the plans (K, S, 2) of the command, their scores, and the chosen one."""
    logits = outputs['plan_scores'][0]
    plans = outputs['plan_steps'][0].unflatten(1, (-1, 2)).cumsum(1)
    if use_rescore:
        hit = hits(outputs, plans, modes)
        if not hit.all():
            logits = logits + PENALTY * hit
    return dict(planning=plans, planning_score=logits.sigmoid(), final_planning=plans[logits.argmax()])


def hits(outputs: Mapping[str, Tensor], plans: Tensor, modes: int) -> Tensor:
    """Return (K,) bool: the plan meets the most probable way of a sure agent.

    As published, the car's shift to its centre goes to the first two rows of the table of all pairs of agent,
    plan and step, with the table's seventh row as its yaw.
    """
    plans, anchor = plans.double(), outputs['pred_anchor'][0].double()
    steps = outputs['motion_steps'][0].double().unflatten(1, (modes, -1, 2))[:, :, : plans.shape[1]]
    best = outputs['motion_scores'][0].argmax(-1)
    ways = steps[torch.arange(len(steps)), best].cumsum(1)  # (A, S, 2)
    car_size = plans.new_tensor([EGO_LENGTH_M, EGO_WIDTH_M]).expand_as(plans)
    car_yaw = yaws_along(plans, torch.full_like(plans[:, 0, 0], HEAD_ON))
    table = torch.cat([plans, car_size, car_yaw[..., None]], 2).repeat(len(anchor), 1, 1, 1)
    rows = table.view(-1, table.shape[-1])
    if len(rows) > 6:
        first = rows[0] + SHIFT_M * rows[6].cos()
        second = rows[1] + SHIFT_M * rows[6].sin()
        rows[0], rows[1] = first, second
    is_sure = outputs['pred_class_score'][0].sigmoid().amax(-1) >= SURE_FROM
    table, anchor, ways = table[is_sure], anchor[is_sure], ways[is_sure]
    yaws = yaws_along(ways, torch.atan2(anchor[:, SINE], anchor[:, COSINE]))
    sizes = anchor[:, LOG_SIZE][:, :2].exp()[:, None].expand_as(ways)
    agents = torch.cat([ways + anchor[:, None, :2], sizes, yaws[..., None]], 2)[:, None].expand_as(table)
    return (holds_corner(table, agents) | holds_corner(agents, table)).any(2).any(0)


def yaws_along(ways: Tensor, first: Tensor) -> Tensor:
    """Return the yaws (n, S) of ways (n, S, 2) from the origin; standing ones keep the `first` yaw (n,)."""
    points = torch.cat([torch.zeros_like(ways[:, :1]), ways], 1)
    last = points.shape[1] - 1
    yaws = []
    for step in range(1, last + 1):
        along = points[:, min(step + 1, last)] - points[:, step - 1]
        yaws.append(torch.atan2(along[:, 1], along[:, 0]))
    is_standing = ways[:, -1].norm(dim=-1) < STANDING_BELOW_M
    return torch.where(is_standing[:, None], first[:, None], torch.stack(yaws, 1))


def holds_corner(boxes: Tensor, others: Tensor) -> Tensor:
    """Return whether a corner of the other box is in the box; boxes (..., 5): x, y, length, width, yaw."""
    corners = corners_of(others) - boxes[..., None, :2]
    cosine, sine = boxes[..., 4:].cos(), boxes[..., 4:].sin()
    ahead = corners[..., 0] * cosine + corners[..., 1] * sine
    aside = corners[..., 1] * cosine - corners[..., 0] * sine
    return ((ahead.abs() <= boxes[..., 2:3] / 2) & (aside.abs() <= boxes[..., 3:4] / 2)).any(-1)


def corners_of(boxes: Tensor) -> Tensor:
    """Return the corners (..., 4, 2) of boxes (..., 5)."""
    x, y, length, width, yaw = boxes.unbind(-1)
    ahead = torch.stack([length * yaw.cos(), length * yaw.sin()], -1) / 2
    left = torch.stack([-width * yaw.sin(), width * yaw.cos()], -1) / 2
    middle = torch.stack([x, y], -1)
    signs = ((1, 1), (1, -1), (-1, -1), (-1, 1))
    return torch.stack([middle + along * ahead + across * left for along, across in signs], -2)


def decoded(head: Any, outputs: Mapping[str, Tensor], command: int) -> dict[str, Tensor]:
    """Return the results of a frame, named as upstream; plans of other commands are zero."""
    planner = head.motion_plan_head
    use_rescore = planner.planning_decoder.use_rescore
    plan = plan_of(outputs, planner.fut_mode, use_rescore)
    for name in ('planning', 'planning_score'):
        every = plan[name].new_zeros(3, *plan[name].shape)
        every[command] = plan[name]
        plan[name] = every
    boxes = boxes_with_trajectories(outputs, head.det_head.decoder.num_output, planner.fut_mode)
    return {**boxes, **map_lines(outputs['map_points'][0], outputs['map_scores'][0]), **plan}


# ---- detector and data set


@registered_if_named(DATASETS)
class NuScenes3DDataset(NuScenes3DDetTrackDataset):
    """The data set of Sparse4D, plus the command."""

    def __init__(self, map_classes: Any = None, eval_config: Any = None, **settings: Any) -> None:
        super().__init__(**settings)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return dict(super().get_data_info(index), gt_ego_fut_cmd=self.data_infos[index]['gt_ego_fut_cmd'])


@registered_if_named(HEADS)
class SparseDriveHead(BaseModule):
    """Heads for boxes, lines, motion and plan; `memory`: of the last frame, or None."""

    def __init__(self, det_head: dict, map_head: dict, motion_plan_head: dict, **training: Any) -> None:
        super().__init__()
        self.det_head, self.map_head = build_head(det_head), build_head(map_head)
        self.motion_plan_head = build_head(motion_plan_head)
        self.reset()

    def reset(self) -> None:
        self.memory: dict[str, Tensor] | None = None
        self.metas: Mapping[str, Any] | None = None

    def forward(self, features: Features, metas: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Return the outputs of the four tasks, named as upstream, and keep the memory."""
        bank, moment = self.det_head.instance_bank, None
        if self.memory is not None:
            gap = (metas['timestamp'] - self.metas['timestamp']).float()
            bank.mask = gap.abs() <= bank.max_time_interval
            now, before = metas['img_metas'][0], self.metas['img_metas'][0]
            motion = gap.new_tensor(np.array([now['T_global_inv'] @ before['T_global']]))
            default = torch.full_like(gap, bank.default_time_interval)
            moment = Moment(torch.where((gap != 0) & bank.mask, gap, default), bank.mask, motion, gap)
        height, width = features.spatial_shapes[0, -1].tolist()
        begin = int(features.level_start_index[0, -1])
        front = features.rows[:, begin : begin + height * width].transpose(1, 2).unflatten(2, (height, width))
        ego = ego_feature(self.motion_plan_head.instance_queue, front)
        pictures = Pictures(*features, metas['projection_mat'][0], metas['image_wh'][0])
        command = metas['gt_ego_fut_cmd'].argmax(-1)
        found, self.memory = run_frame(self, pictures, ego, command, self.memory, moment)
        self.metas, bank.temp_confidence = metas, found['confidence']
        return found, command

    def post_process(self, outputs: tuple[Any, ...], data: Mapping[str, Any]) -> list[dict[str, Any]]:
        found, command = outputs
        return [decoded(self, found, int(command[0]))]


@registered_if_named(DETECTORS)
class SparseDrive(BaseModule):
    def __init__(self, img_backbone: dict, img_neck: dict, head: dict, **training: Any) -> None:
        super().__init__()
        self.img_backbone, self.img_neck = build_backbone(img_backbone), build_neck(img_neck)
        self.head = build_head(head)

    def extract_feat(self, img: Tensor) -> Features:
        """Return the feature maps of images (1, N, 3, H, W)."""
        return flatten_maps(self.img_neck(self.img_backbone(img[0])))

    def forward(self, img: Tensor, **data: Any) -> list[dict]:
        """Return 'img_bbox' -> the results of one frame; `data` has the metas of the head."""
        if isinstance(img, list):
            img, data = (
                img[0],
                {key: value[0] if isinstance(value, list) else value for key, value in data.items()},
            )
        outputs = self.head(self.extract_feat(img), data)
        return [dict(img_bbox=result) for result in self.head.post_process(outputs, data)]
