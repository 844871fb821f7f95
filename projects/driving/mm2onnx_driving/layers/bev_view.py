"""BEVFormer's encoder and decoder: containers of parameters, which `steps.py` runs; the motion that they get.

Source: fundamentalvision/BEVFormer 66b65f3,
`modules/{transformer,encoder,decoder,custom_base_transformer_layer}.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.cnn.bricks.registry import ATTENTION, TRANSFORMER_LAYER, TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import (
    TransformerLayerSequence,
    build_attention,
    build_positional_encoding,
    build_transformer_layer_sequence,
)
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
from mmcv.runner.base_module import BaseModule
from mmdet.models.utils import build_transformer
from mmdet.models.utils.builder import TRANSFORMER
from torch import Tensor, nn
from torchvision.transforms import functional

from mm2onnx_driving.layers.bev_steps import LastView, encode_view
from mm2onnx_driving.layers.query_decoder import AttentionLayer
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.conditional_detr import QueryBoxCoder, box_branch, class_branch

# The attentions of BEVFormer: layers with upstream's names, run by `sampling.py`.
#
# Source: fundamentalvision/BEVFormer 66b65f3,
# `modules/{temporal_self_attention,spatial_cross_attention,decoder}.py`.


class DeformableSampler(BaseModule):
    """The linear layers of a deformable attention."""

    def __init__(
        self, embed_dims: int, num_heads: int, num_levels: int, num_points: int, queues: int = 1
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ConfigError(
                f'{type(self).__name__}: embed_dims is {embed_dims}, expected a multiple of num_heads = '
                f'{num_heads}'
            )
        self.embed_dims, self.num_heads = embed_dims, num_heads
        self.num_levels, self.num_points = num_levels, num_points
        samples = queues * num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(queues * embed_dims, 2 * samples)
        self.attention_weights = nn.Linear(queues * embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)


@registered_if_named(ATTENTION)
class TemporalSelfAttention(DeformableSampler):
    """Cells of the bird's-eye view look into the last view and into the first queries of the present one.

    Raises ConfigError unless `num_levels` is 1 (upstream's default: 4) and `num_bev_queue` 2.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        num_bev_queue: int = 2,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = True,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if (num_levels, num_bev_queue) != (1, 2):
            raise ConfigError(
                f'TemporalSelfAttention: num_levels={num_levels}, num_bev_queue={num_bev_queue}; expected '
                "1 and 2: the current and the previous bird's-eye view, with one level"
            )
        super().__init__(embed_dims, num_heads, num_levels, num_points, num_bev_queue)
        self.output_proj = nn.Linear(embed_dims, embed_dims)


@registered_if_named(ATTENTION)
class MSDeformableAttention3D(DeformableSampler):
    """Samples around the points of a pillar in the cameras' maps; no output layer."""

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = True,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(embed_dims, num_heads, num_levels, num_points)


@registered_if_named(ATTENTION, builds=('MSDeformableAttention3D',))
class SpatialCrossAttention(BaseModule):
    """Cells of the bird's-eye view look into the cameras that see their pillars; mean over cameras."""

    def __init__(
        self,
        embed_dims: int = 256,
        num_cams: int = 6,
        pc_range: Sequence[float] | None = None,
        dropout: float = 0.1,
        init_cfg: dict | None = None,
        batch_first: bool = False,
        deformable_attention: dict | None = None,
        **training: Any,
    ) -> None:
        super().__init__()
        default = dict(type='MSDeformableAttention3D', embed_dims=embed_dims, num_levels=4)
        self.deformable_attention = build_attention(deformable_attention or default)
        self.embed_dims, self.num_cams = embed_dims, num_cams
        self.output_proj = nn.Linear(embed_dims, embed_dims)


@registered_if_named(ATTENTION)
class CustomMSDeformableAttention(MultiScaleDeformableAttention):
    """Upstream's name for mmcv's deformable attention in its decoder."""


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


# The head of a bird's-eye view: queries of cells and objects, and the branches of the decoder's layers.
#
# Source: fundamentalvision/BEVFormer 66b65f3, `dense_heads/bevformer_head.py`.
# Glossary: N cameras, C channels, h, w feature map, H, W padded pictures in pixels, Q cells of the
# bird's-eye
# view, row by row, L decoder layers, R queries of objects, K classes.


CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
"""Loss weights of a box's columns, in checkpoints."""


class BevHead(BaseModule):
    """Test-time head: feature maps of all cameras to the bird's-eye view and objects.

    Args:
        num_classes, num_query: K, R.
        in_channels, num_cls_fcs, training: unused; C is `embed_dims` of the transformer.
        bev_h, bev_w: rows and columns of the view.
        with_box_refine, as_two_stage, code_size: must be True, False and 10 (ConfigError).
        transformer, bbox_coder, positional_encoding: configs.
        num_reg_fcs: hidden layers of the branches of classes and boxes.
        code_weights: loss weights, in checkpoints; default `CODE_WEIGHTS`.
    """

    shifts_present = False

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        num_query: int = 100,
        bev_h: int = 30,
        bev_w: int = 30,
        with_box_refine: bool = False,
        as_two_stage: bool = False,
        transformer: dict | None = None,
        bbox_coder: dict | None = None,
        positional_encoding: dict | None = None,
        num_cls_fcs: int = 2,
        num_reg_fcs: int = 2,
        code_size: int = 10,
        code_weights: Sequence[float] | None = None,
        init_cfg: dict | None = None,
        **training: Any,
    ) -> None:
        super().__init__(init_cfg)
        if not with_box_refine or as_two_stage:
            raise ConfigError(
                f'{type(self).__name__}: with_box_refine={with_box_refine}, as_two_stage={as_two_stage}; '
                'expected True and False, as in the published configs'
            )
        if code_size != len(CODE_WEIGHTS):
            raise ConfigError(
                f'{type(self).__name__}: code_size is {code_size}, expected {len(CODE_WEIGHTS)}'
            )
        self.bev_h, self.bev_w, self.num_query, self.num_classes = bev_h, bev_w, num_query, num_classes
        self.code_size = code_size
        self.bbox_coder = QueryBoxCoder(**{key: value for key, value in bbox_coder.items() if key != 'type'})
        self.pc_range = self.bbox_coder.pc_range
        self.positional_encoding = build_positional_encoding(positional_encoding)
        self.transformer = build_transformer(transformer)
        channels, layers = self.transformer.embed_dims, len(self.transformer.decoder.layers)
        self.cls_branches = nn.ModuleList(
            class_branch(channels, num_reg_fcs, num_classes) for _ in range(layers)
        )
        self.reg_branches = nn.ModuleList(box_branch(channels, num_reg_fcs, code_size) for _ in range(layers))
        self.bev_embedding = nn.Embedding(bev_h * bev_w, channels)
        self.query_embedding = nn.Embedding(num_query, 2 * channels)
        self.code_weights = nn.Parameter(
            torch.tensor(tuple(code_weights or CODE_WEIGHTS)), requires_grad=False
        )

    def encode(self, maps: Sequence[Tensor], img_metas: list[dict], prev_bev: Tensor | None) -> Tensor:
        """Return the bird's-eye view (1, Q, C) of one frame.

        Args:
            maps: feature maps of each level (1, N, C, h, w).
            img_metas: one dict: `can_bus` (18,) of `bev_motion.motion_since`; `lidar2img` [N] of (4, 4), to
                pixels of the padded pictures times depth; `pad_shape` (or `img_shape`) [N] of (H, W, 3), the
                first counts for all.
            prev_bev: the last bird's-eye view (Q, 1, C), not rotated; None at the first frame of a scene.
        """
        (meta,) = img_metas
        motion = np.asarray(meta['can_bus'], np.float64)
        numbers, lidar2img = (
            torch.from_numpy(np.asarray(values, np.float32)).to(maps[0].device)
            for values in (motion, meta['lidar2img'])
        )
        return encode_view(
            self,
            [level[0] for level in maps],
            numbers,
            lidar2img,
            tuple((meta.get('pad_shape') or meta['img_shape'])[0][:2]),
            last_view(self, motion, prev_bev),
        )
