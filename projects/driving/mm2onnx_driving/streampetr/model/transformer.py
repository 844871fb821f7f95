"""The temporal decoder: queries attend to themselves and to the memory, then to the image tokens.

Tensors inside are sequence first, (n, B, C), as in mmcv's attention.

Source: exiawsh/StreamPETR 95f6470, models/utils/petr_transformer.py, with its parameter names.
Glossary: B batch, C channels, Q queries (new and propagated), T tokens, M memory rows that are no queries, L
outputs, one per decoder layer, or 1 without `return_intermediate`, n any of Q, T, M.
"""

from typing import Any

import torch
from mmcv.cnn import xavier_init
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER
from mmdet.models.utils.builder import TRANSFORMER
from torch import Tensor

from mm2onnx_driving.layers.query_decoder import AttentionLayer, DecoderTransformer
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(TRANSFORMER_LAYER)
class PETRTemporalDecoderLayer(AttentionLayer):
    """An `AttentionLayer` with memory in its self attention; raises ConfigError for `batch_first=True`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.batch_first:
            raise ConfigError(
                'PETRTemporalDecoderLayer: batch_first=True is not supported; the decoder is sequence first'
            )

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        temp_memory: Tensor,
        temp_pos: Tensor,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the queries (Q, B, C) after the layer.

        Tokens (T, B, C) are keys and values of the cross attention; memory rows (M, B, C), maybe none, stand
        behind the queries in the self attention. `attn_mask` (Q, Q + M) is True where a query must not look.
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


@registered_if_named(TRANSFORMER)
class PETRTemporalTransformer(DecoderTransformer):
    """A `DecoderTransformer` for batch-first tensors."""

    def init_weights(self) -> None:
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
    ) -> Tensor:
        """Return the outputs (L, B, Q, C) of the layers for (B, n, C) inputs."""
        sequences = (tgt, query_pos, tokens, tokens_pos, temp_memory, temp_pos)
        return self.decoder(*(sequence.transpose(0, 1) for sequence in sequences)).transpose(1, 2)
