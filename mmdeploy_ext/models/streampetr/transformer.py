"""The temporal decoder: queries attend to themselves and to the memory, then to the image tokens.

Source: exiawsh/StreamPETR 95f6470, models/utils/petr_transformer.py; parameter names are the checkpoints'.
Differs in: both attentions are mmcv's, which has the same parameters (`attn.in_proj_weight`, ...) and
computes the same; there is no half-precision path and no CUDA kernel. Inside, tensors are sequence first,
(n, B, C), as mmcv's attention takes them.

Glossary: B batch, C channels, Q queries, T tokens, M memory rows that are no queries, L decoder layers, n any
of Q, T, M.
"""

from typing import Any

import torch
from mmcv.cnn import build_norm_layer, xavier_init
from mmcv.cnn.bricks.registry import ATTENTION, TRANSFORMER_LAYER, TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import (
    BaseTransformerLayer,
    MultiheadAttention,
    TransformerLayerSequence,
    build_transformer_layer_sequence,
)
from mmcv.runner.base_module import BaseModule
from mmcv.utils import get_logger
from mmdet.models.utils.builder import TRANSFORMER
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.catalogue import offered

LAYER_NORM = dict(type='LN')
"""Normalisation if the config names none."""
FFN_KEYS = dict(feedforward_channels='feedforward_channels', ffn_dropout='ffn_drop', ffn_num_fcs='num_fcs')
"""Option of a decoder layer -> option of mmcv's `FFN`."""
_announced: set[str] = set()
"""Warnings that were logged in this process."""


@offered(ATTENTION)
class PETRMultiheadAttention(MultiheadAttention):
    """Multi-head attention with identity connection and positions.

    `dropout` is one rate for the attention weights and for the shortcut; it replaces `attn_drop` and
    `dropout_layer`, unless it is None. `fp16`, in training, is refused: mixed precision is set for the whole
    model.
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


@offered(ATTENTION)
class PETRMultiheadFlashAttention(PETRMultiheadAttention):
    """A config's flash attention, run as standard attention: same parameters, float32 instead of float16."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        line = 'PETRMultiheadFlashAttention: the standard attention runs instead (same parameters, float32)'
        if line not in _announced:  # once per process; rank 0 logs it
            _announced.add(line)
            get_logger('mm2onnx').warning(line)


@offered(TRANSFORMER_LAYER)
class PETRTemporalDecoderLayer(BaseTransformerLayer):
    """One decoder layer, in the order that `operation_order` gives.

    `with_cp` recomputes it in the backward pass instead of keeping its activations. The options of `FFN_KEYS`
    belong to the feed-forward network, and take precedence over `ffn_cfgs`.
    """

    def __init__(
        self, attn_cfgs: Any, operation_order: tuple[str, ...], with_cp: bool = True, **kwargs: Any
    ) -> None:
        ffn_options = {new: kwargs.pop(old) for old, new in FFN_KEYS.items() if old in kwargs}
        default = dict(
            type='FFN',
            feedforward_channels=1024,
            num_fcs=2,
            ffn_drop=0.0,
            act_cfg=dict(type='ReLU', inplace=True),
        )
        ffn_cfgs = kwargs.pop('ffn_cfgs', default)
        if isinstance(ffn_cfgs, dict):
            # a copy: mmcv writes into the dict
            ffn_cfgs = {**ffn_cfgs, **ffn_options}
        super().__init__(attn_cfgs=attn_cfgs, ffn_cfgs=ffn_cfgs, operation_order=operation_order, **kwargs)
        if self.batch_first:
            raise ConfigError(
                'PETRTemporalDecoderLayer: batch_first=True is not supported; the decoder is sequence first'
            )
        self.with_cp = with_cp

    def forward(self, query: Tensor, *args: Any) -> Tensor:
        """Run the layer; the arguments are those of `compute`."""
        if self.with_cp and self.training and torch.is_grad_enabled():
            return checkpoint(self.compute, query, *args, use_reentrant=False)
        return self.compute(query, *args)

    def compute(
        self,
        query: Tensor,
        query_pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        temp_memory: Tensor,
        temp_pos: Tensor,
        attn_mask: Tensor | None,
    ) -> Tensor:
        """Return the queries (Q, B, C) after the layer.

        Positions are added to queries and keys, of which they have the shapes; tokens (T, B, C) are keys and
        values of the cross attention, the rows of the memory (M, B, C) further ones of the self attention.
        The mask (Q, Q + M) of the self attention is True where a query must not look.
        """
        identity = query
        attentions, norms, ffns = iter(self.attentions), iter(self.norms), iter(self.ffns)
        for operation in self.operation_order:
            # the shortcut starts at the input of the norm only where the norm comes first
            shortcut = identity if self.pre_norm else None
            if operation == 'norm':
                query = next(norms)(query)
                continue
            if operation == 'self_attn':
                keys, keys_pos = torch.cat([query, temp_memory]), torch.cat([query_pos, temp_pos])
                query = next(attentions)(
                    query, keys, keys, shortcut, query_pos=query_pos, key_pos=keys_pos, attn_mask=attn_mask
                )
            elif operation == 'cross_attn':
                query = next(attentions)(
                    query, tokens, tokens, shortcut, query_pos=query_pos, key_pos=tokens_pos
                )
            else:
                query = next(ffns)(query, shortcut)
                continue
            identity = query
        return query


@offered(TRANSFORMER_LAYER_SEQUENCE)
class PETRTransformerDecoder(TransformerLayerSequence):
    """The layers in turn; a shared norm makes each layer's output, but is not applied between layers.

    `return_intermediate` gives every layer's output, not the last one's alone; without `post_norm_cfg` there
    is no norm.
    """

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

    def forward(self, query: Tensor, *args: Any) -> Tensor:
        """Return (L, Q, B, C); L is 1 without `return_intermediate`."""
        outputs = []
        for layer in self.layers:
            query = layer(query, *args)
            outputs.append(query)
        outputs = torch.stack(outputs if self.return_intermediate else outputs[-1:])
        return outputs if self.post_norm is None else self.post_norm(outputs)


@offered(TRANSFORMER)
class PETRTemporalTransformer(BaseModule):
    """The decoder for tensors whose first axis is the batch.

    `decoder` is its config; `cross` is not used, and an `encoder` is refused (ConfigError).
    """

    def __init__(
        self, decoder: dict, encoder: dict | None = None, cross: bool = False, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)
        if encoder is not None:
            raise ConfigError(
                'PETRTemporalTransformer: an encoder is not supported; remove transformer.encoder'
            )
        self.decoder = build_transformer_layer_sequence(decoder)
        self.embed_dims = self.decoder.embed_dims

    def init_weights(self) -> None:
        """Xavier-uniform weights for every matrix, as DETR has it."""
        for module in self.modules():
            if isinstance(getattr(module, 'weight', None), Tensor) and module.weight.dim() > 1:
                xavier_init(module, distribution='uniform')
        self._is_init = True

    def forward(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        temp_memory: Tensor,
        temp_pos: Tensor,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the outputs (L, B, Q, C) for (B, n, C) inputs; see `PETRTemporalDecoderLayer.compute`."""
        sequences = (tgt, query_pos, tokens, tokens_pos, temp_memory, temp_pos)
        return self.decoder(*(sequence.transpose(0, 1) for sequence in sequences), attn_mask).transpose(1, 2)
