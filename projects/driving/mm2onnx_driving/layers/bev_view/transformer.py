"""BEVFormer's encoder and decoder: containers of parameters, which `steps.py` runs; the motion that they get.

Source: fundamentalvision/BEVFormer 66b65f3,
`modules/{transformer,encoder,decoder,custom_base_transformer_layer}.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER, TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import TransformerLayerSequence, build_transformer_layer_sequence
from mmcv.runner.base_module import BaseModule
from mmdet.models.utils.builder import TRANSFORMER
from torch import Tensor, nn
from torchvision.transforms import functional

from mm2onnx_driving.layers.bev_view.steps import LastView
from mm2onnx_driving.layers.query_decoder import AttentionLayer
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# ---- motion of the car between two frames, outside of any graph; the runtime's own code is
# `runtime/bev_motion.py`


CAN_BUS = 18
DX, DY, YAW_RAD, TURN_DEG = 0, 1, 16, 17
"""Entries of the motion: changes of x and y in the map, m, heading in the map, rad, its change, degrees.

The change of heading is near 360 or -360 where it crosses 0.
"""


def last_view(head: nn.Module, motion: np.ndarray, prev_bev: Tensor | None) -> LastView:
    """Return the last view (Q, 1, C) as the present frame uses it; None at the first frame."""
    transformer, cells = head.transformer, head.bev_embedding.weight
    if prev_bev is None:
        return LastView(torch.zeros_like(cells)[None], cells.new_zeros(2), cells.new_zeros(1))
    last, shift = prev_bev.transpose(0, 1), np.zeros(2)
    if transformer.rotate_prev_bev:
        last = turned(prev_bev, motion, transformer.rotate_center, (head.bev_h, head.bev_w))
    if transformer.use_shift:
        shift = shift_of(motion, np.array(head.pc_range[3:5]) - np.array(head.pc_range[:2]))
    return LastView(last, cells.new_tensor(shift), cells.new_ones(1), head.shifts_present)


def turned(view: Tensor, motion: np.ndarray, center: Sequence[float], size: tuple[int, int]) -> Tensor:
    """Return a view (Q, 1, C) turned by the motion (18,), as (1, Q, C); `center` is x, y in cells."""
    picture = view[:, 0].t().reshape(-1, *size)
    picture = functional.rotate(picture, float(motion[TURN_DEG]), center=list(center))
    return picture.flatten(1).t()[None]


def shift_of(motion: np.ndarray, extent: Sequence[float]) -> np.ndarray:
    """Return the car's way (2,), x right and y ahead, in shares of the view's sides (`extent`, m)."""
    length = math.hypot(motion[DX], motion[DY])
    direction = math.degrees(motion[YAW_RAD]) - math.degrees(math.atan2(motion[DY], motion[DX]))
    x, y = length * math.sin(math.radians(direction)), length * math.cos(math.radians(direction))
    return np.array([x / extent[0], y / extent[1]])


# ---- encoder and decoder


@registered_if_named(TRANSFORMER_LAYER)
class BEVFormerLayer(AttentionLayer):
    """One layer of the encoder, batch first."""

    def __init__(
        self,
        attn_cfgs: Any,
        operation_order: tuple[str, ...],
        act_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        **options: Any,
    ) -> None:
        options['ffn_cfgs'] = dict(type='FFN', act_cfg=act_cfg or dict(type='ReLU', inplace=True))
        options |= dict(norm_cfg=norm_cfg or dict(type='LN'), batch_first=True)
        super().__init__(attn_cfgs, operation_order, **options)


@registered_if_named(TRANSFORMER_LAYER_SEQUENCE)
class BEVFormerEncoder(TransformerLayerSequence):
    """The layers of the encoder.

    Args:
        layers, settings: the arguments of mmcv's class.
        pc_range: x, y, z low, then high, m, of the view and its pillars.
        num_points_in_pillar: points of a pillar in the pictures; divides the attention's `num_points`
            (ConfigError).
        return_intermediate, dataset_type: unused.
    """

    def __init__(
        self,
        *layers: Any,
        pc_range: Sequence[float],
        num_points_in_pillar: int = 4,
        return_intermediate: bool = False,
        dataset_type: str = 'nuscenes',
        **settings: Any,
    ) -> None:
        super().__init__(*layers, **settings)
        self.pc_range, self.num_points_in_pillar = pc_range, num_points_in_pillar
        for attention in (attention for layer in self.layers for attention in layer.attentions):
            sampler = getattr(attention, 'deformable_attention', None)
            if getattr(sampler, 'num_points', 0) % num_points_in_pillar:
                raise ConfigError(
                    f'BEVFormerEncoder: num_points_in_pillar={num_points_in_pillar}, but the attention has '
                    f'num_points={sampler.num_points}; expected a multiple'
                )


@registered_if_named(TRANSFORMER_LAYER_SEQUENCE)
class DetectionTransformerDecoder(TransformerLayerSequence):
    """The layers of the decoder; predictions of all of them are kept."""

    def __init__(self, *layers: Any, return_intermediate: bool = False, **settings: Any) -> None:
        super().__init__(*layers, **settings)


@registered_if_named(TRANSFORMER)
class PerceptionTransformer(BaseModule):
    """Encoder, decoder and shared embeddings.

    Args:
        num_feature_levels: levels with an embedding; a model may use fewer.
        num_cams: cameras.
        encoder, decoder: configs.
        embed_dims: channels of the maps and of all queries.
        rotate_prev_bev, use_shift: the last view is turned and shifted by the car's motion.
        use_can_bus, can_bus_norm: queries of cells get an embedding of the motion, with a layer
            normalisation.
        use_cams_embeds: tokens have an embedding of their camera.
        rotate_center: column and row about which the last view turns; trained weights rely on (100, 100),
            whatever the view's middle.
        two_stage_num_proposals, training: unused.
    """

    def __init__(
        self,
        num_feature_levels: int = 4,
        num_cams: int = 6,
        two_stage_num_proposals: int = 300,
        encoder: dict | None = None,
        decoder: dict | None = None,
        embed_dims: int = 256,
        rotate_prev_bev: bool = True,
        use_shift: bool = True,
        use_can_bus: bool = True,
        can_bus_norm: bool = True,
        use_cams_embeds: bool = True,
        rotate_center: Sequence[float] = (100, 100),
        init_cfg: dict | None = None,
        **training: Any,
    ) -> None:
        super().__init__(init_cfg)
        self.encoder = build_transformer_layer_sequence(encoder)
        self.decoder = build_transformer_layer_sequence(decoder)
        self.embed_dims, self.num_cams = embed_dims, num_cams
        self.rotate_prev_bev, self.use_shift, self.use_can_bus = rotate_prev_bev, use_shift, use_can_bus
        self.use_cams_embeds, self.rotate_center = use_cams_embeds, tuple(rotate_center)
        self.level_embeds = nn.Parameter(torch.zeros(num_feature_levels, embed_dims))
        self.cams_embeds = nn.Parameter(torch.zeros(num_cams, embed_dims))
        self.reference_points = nn.Linear(embed_dims, 3)
        self.can_bus_mlp = nn.Sequential(
            nn.Linear(CAN_BUS, embed_dims // 2),
            nn.ReLU(inplace=True),
            nn.Linear(embed_dims // 2, embed_dims),
            nn.ReLU(inplace=True),
        )
        if can_bus_norm:
            self.can_bus_mlp.add_module('norm', nn.LayerNorm(embed_dims))
