"""Layers of SparseDrive's heads; without `forward` if `steps.py` runs them.

Names as in swc-17/SparseDrive ec0225d, models/{instance_bank,attention}.py, models/{detection3d,map,motion}.
"""

from collections.abc import Sequence
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
from mmdet.models import HEADS
from torch import nn

from mm2onnx_driving.layers.sparse_instances.blocks import normalised_layers
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

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
