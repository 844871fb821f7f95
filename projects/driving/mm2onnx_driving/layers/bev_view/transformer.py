"""The encoder and the decoder of BEVFormer: containers of parameters, which `steps.py` runs.

Source: fundamentalvision/BEVFormer 66b65f3,
`modules/{transformer,encoder,decoder,custom_base_transformer_layer}.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER, TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import TransformerLayerSequence, build_transformer_layer_sequence
from mmcv.runner.base_module import BaseModule
from mmdet.models.utils.builder import TRANSFORMER
from torch import nn

from mm2onnx_driving.layers.bev_view.motion import CAN_BUS
from mm2onnx_driving.layers.query_decoder import AttentionLayer
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


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
