"""Decoder parts of PETR and StreamPETR: attentions, layers, sequences.

Source: exiawsh/StreamPETR 95f6470 and megvii-research/PETR f7525f9, `models/utils/petr_transformer.py`, with
their parameter names.
Glossary: B batch, C channels, Q queries, L decoder layers.
"""

import math
from typing import Any

import numpy as np
import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.registry import ATTENTION, TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import (
    BaseTransformerLayer,
    MultiheadAttention,
    TransformerLayerSequence,
    build_transformer_layer_sequence,
)
from mmcv.runner.base_module import BaseModule
from mmcv.utils import get_logger
from torch import Tensor

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# Points along the rays of image tokens, and codes of positions, for PETR and StreamPETR.
#
# Sources: megvii-research/PETR f7525f9, `dense_heads/petr_head.py` (`position_embeding`, `pos2posemb3d`);
# exiawsh/StreamPETR 95f6470, `models/utils/positional_encoding.py`.
# Glossary: B batch, N cameras, T tokens, D depths.


MIN_DEPTH = 1e-5
"""Smallest depth factor of pixels, m."""


def depth_bins(num: int, start: float, end: float, linear_increasing: bool) -> Tensor:
    """Return `num` depths (num,) from `start` on, m; the next would be `end`.

    Steps are equal, or with `linear_increasing` grow linearly (LID).
    """
    index = torch.arange(num).float()
    if linear_increasing:
        return start + (end - start) / (num * (1 + num)) * index * (index + 1)
    return start + (end - start) / num * index


def frustum_points(pixels: Tensor, depths: Tensor) -> Tensor:
    """Return the homogeneous points (T, D, 4) u d, v d, d, 1 of `pixels` (T, 2) at `depths` (D,) m.

    A token's place in the padded image is its cell's centre for StreamPETR, the upper left corner for PETR.
    """
    num_tokens, num_bins = pixels.shape[0], depths.shape[0]
    depth = depths.view(1, -1, 1).expand(num_tokens, num_bins, 1)
    scaled = pixels.unsqueeze(1) * depth.clamp(min=MIN_DEPTH)
    return torch.cat([scaled, depth, torch.ones_like(depth)], dim=-1)


def lidar_points(img2lidar: Tensor, frustum: Tensor) -> Tensor:
    """Return the points (B, T, D, 3) in m, LiDAR frame, of a frustum (T, D, 4).

    Matrices, from pixels times depth to metres, are (B, N, 4, 4), (B, T, 4, 4) or (B, T, D, 4, 4).
    """
    num_tokens, num_bins, _ = frustum.shape
    matrices = img2lidar.flatten(1, -3).transpose(-1, -2)
    per_matrix = num_tokens * num_bins // matrices.shape[1]
    points = frustum.reshape(1, -1, per_matrix, 4) @ matrices
    return points.reshape(-1, num_tokens, num_bins, 4)[..., :3]


def sine_encoding(values: Tensor, num_feats: int) -> Tensor:
    """Encode numbers (..., 1), scaled by 2 pi, as (..., num_feats): sin, cos, sin, cos, ..."""
    periods = 10000.0 ** (2 * np.arange(num_feats // 2) / num_feats)
    angles = values * (2 * math.pi) / torch.tensor(periods.tolist(), device=values.device)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def point_encoding(points: Tensor, num_feats: int) -> Tensor:
    """Encode points (..., 3) in shares of a range as (..., 3 * num_feats), in the order y, x, z."""
    return torch.cat([sine_encoding(points[..., axis : axis + 1], num_feats) for axis in (1, 0, 2)], dim=-1)


LAYER_NORM = dict(type='LN')
FFN_KEYS = dict(feedforward_channels='feedforward_channels', ffn_dropout='ffn_drop', ffn_num_fcs='num_fcs')
_announced: set[str] = set()


@registered_if_named(ATTENTION)
class PETRMultiheadAttention(MultiheadAttention):
    """Multi-head attention with identity connection and positions.

    Raises ConfigError for `fp16=True`: mixed precision is set for the whole model.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        dropout_layer: dict | None = None,
        dropout: float | None = None,
        fp16: bool = False,
        **kwargs: Any,
    ) -> None:
        if fp16:
            raise ConfigError(
                f'{type(self).__name__}: fp16=True is not supported; set the precision of the whole model'
            )
        if dropout is not None:
            attn_drop, dropout_layer = dropout, dict(type='Dropout', drop_prob=dropout)
        # mmcv writes into its default dropout_layer, which all instances share
        dropout_layer = dict(dropout_layer or dict(type='Dropout', drop_prob=0.0))
        super().__init__(embed_dims, num_heads, attn_drop, proj_drop, dropout_layer, **kwargs)


@registered_if_named(ATTENTION)
class PETRMultiheadFlashAttention(PETRMultiheadAttention):
    """Flash attention run as standard attention: same parameters, float32."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        line = 'PETRMultiheadFlashAttention: the standard attention runs instead (same parameters, float32)'
        if line not in _announced:  # once per process; rank 0 logs it
            _announced.add(line)
            get_logger('mm2onnx').warning(line)


class AttentionLayer(BaseTransformerLayer):
    """Attentions and feed-forward networks in the order of `operation_order`."""

    def __init__(
        self, attn_cfgs: Any, operation_order: tuple[str, ...], with_cp: bool = True, **options: Any
    ) -> None:
        network = {new: options.pop(old) for old, new in FFN_KEYS.items() if old in options}
        ffn_cfgs = options.pop('ffn_cfgs', dict(type='FFN', act_cfg=dict(type='ReLU', inplace=True)))
        # copies: mmcv writes into the dicts
        if isinstance(ffn_cfgs, dict):
            ffn_cfgs = {**ffn_cfgs, **network}
        else:
            ffn_cfgs = [{**cfg, **network} for cfg in ffn_cfgs]
        super().__init__(attn_cfgs=attn_cfgs, ffn_cfgs=ffn_cfgs, operation_order=operation_order, **options)


class DecoderTransformer(BaseModule):
    """Base of transformers with a decoder alone; raises ConfigError for an `encoder`; `cross` is unused."""

    def __init__(
        self, decoder: dict, encoder: dict | None = None, cross: bool = False, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)
        if encoder is not None:
            raise ConfigError(
                f'{type(self).__name__}: an encoder is not supported; remove transformer.encoder'
            )
        self.decoder = build_transformer_layer_sequence(decoder)
        self.embed_dims = self.decoder.embed_dims


@registered_if_named(TRANSFORMER_LAYER_SEQUENCE)
class PETRTransformerDecoder(TransformerLayerSequence):
    """The layers in turn; a shared norm is applied to outputs, not between layers."""

    def __init__(
        self,
        *args: Any,
        post_norm_cfg: dict | None = LAYER_NORM,
        return_intermediate: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.return_intermediate = return_intermediate
        self.post_norm = build_norm_layer(post_norm_cfg, self.embed_dims)[1] if post_norm_cfg else None

    def forward(self, query: Tensor, *args: Any, **options: Any) -> Tensor:
        """Return (L, Q, B, C) of queries (Q, B, C); L is 1 without `return_intermediate`."""
        outputs = []
        for layer in self.layers:
            query = layer(query, *args, **options)
            outputs.append(query)
        outputs = torch.stack(outputs if self.return_intermediate else outputs[-1:])
        return outputs if self.post_norm is None else self.post_norm(outputs)
