"""The decoder of PETR: queries attend to themselves, then to the tokens of all cameras.

The layers, their sequence and the attention are StreamPETR's, which were PETR's first.

Source: megvii-research/PETR f7525f9, `utils/petr_transformer.py`; parameter names are the checkpoints'.

Glossary: C channels, R queries, T tokens, L layers of the decoder.
"""

from typing import Any

import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER
from mmdet.models.utils.builder import TRANSFORMER
from torch import Tensor

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.catalogue import registered_if_named
from mmdeploy_ext.models.query_decoder import AttentionLayer, DecoderTransformer


@registered_if_named(TRANSFORMER_LAYER)
class PETRTransformerDecoderLayer(AttentionLayer):
    """An `AttentionLayer` under PETR's name; its `forward` is that of mmcv's `BaseTransformerLayer`."""


@registered_if_named(TRANSFORMER)
class PETRTransformer(DecoderTransformer):
    """A `DecoderTransformer` for tokens by camera; ConfigError: layers that begin with a norm."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if any(layer.pre_norm for layer in self.decoder.layers):
            raise ConfigError('PETRTransformer: operation_order begins with a norm; expected self_attn first')

    def forward(self, tokens: Tensor, positions: Tensor, query_pos: Tensor, padding: Tensor | None) -> Tensor:
        """Return the outputs (L, 1, R, C) of all layers; L is 1 if the decoder lacks `return_intermediate`.

        Tokens and their positions are (T, C), camera by camera, row by row; the queries' positions (R, C);
        `padding` (T,) is True where a token shows no picture, None if none does so.
        """
        tokens, positions, query_pos = (x.unsqueeze(1) for x in (tokens, positions, query_pos))
        outputs = self.decoder(
            torch.zeros_like(query_pos),
            tokens,
            tokens,
            query_pos=query_pos,
            key_pos=positions,
            key_padding_mask=None if padding is None else padding.unsqueeze(0),
        )
        return outputs.transpose(1, 2)
