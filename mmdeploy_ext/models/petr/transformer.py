"""The decoder of PETR: queries attend to themselves, then to the tokens of all cameras.

The sequence of layers and the attention are StreamPETR's, which were PETR's first.

Source: megvii-research/PETR f7525f9, `utils/petr_transformer.py`; parameter names are the checkpoints'.

Glossary: C channels, R queries, T tokens, L layers of the decoder.
"""

from typing import Any

import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER
from mmcv.cnn.bricks.transformer import BaseTransformerLayer, build_transformer_layer_sequence
from mmcv.runner.base_module import BaseModule
from mmdet.models.utils.builder import TRANSFORMER
from torch import Tensor

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.catalogue import offered
from mmdeploy_ext.models.query_decoder import FFN_KEYS


@offered(TRANSFORMER_LAYER)
class PETRTransformerDecoderLayer(BaseTransformerLayer):
    """One decoder layer, in the order that `operation_order` gives.

    `with_cp` belongs to training and is not used. The options of `FFN_KEYS` are those of the feed-forward
    network.
    """

    def __init__(
        self, attn_cfgs: Any, operation_order: tuple[str, ...], with_cp: bool = True, **options: Any
    ) -> None:
        network = {name: options.pop(key) for key, name in FFN_KEYS.items() if key in options}
        ffn_cfgs = dict(dict(type='FFN', act_cfg=dict(type='ReLU', inplace=True)), **network)
        super().__init__(attn_cfgs=attn_cfgs, ffn_cfgs=ffn_cfgs, operation_order=operation_order, **options)

    def forward(
        self, query: Tensor, query_pos: Tensor, tokens: Tensor, positions: Tensor, padding: Tensor | None
    ) -> Tensor:
        """Return the queries (R, 1, C) after the layer.

        Positions are added to queries and keys, of which they have the shapes; tokens (T, 1, C) are keys and
        values of the cross attention. The mask (1, T) is True for tokens of padding, None if there are none.
        """
        attentions, norms, ffns = iter(self.attentions), iter(self.norms), iter(self.ffns)
        for operation in self.operation_order:
            if operation == 'norm':
                query = next(norms)(query)
            elif operation == 'self_attn':
                query = next(attentions)(query, query, query, query_pos=query_pos, key_pos=query_pos)
            elif operation == 'cross_attn':
                query = next(attentions)(
                    query,
                    tokens,
                    tokens,
                    query_pos=query_pos,
                    key_pos=positions,
                    key_padding_mask=padding,
                )
            else:
                query = next(ffns)(query)
        return query


@offered(TRANSFORMER)
class PETRTransformer(BaseModule):
    """The decoder for tokens by camera; `cross` is not used."""

    def __init__(
        self, decoder: dict, encoder: dict | None = None, cross: bool = False, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)
        if encoder is not None:
            raise ConfigError('PETRTransformer: an encoder is not supported; remove transformer.encoder')
        self.decoder = build_transformer_layer_sequence(decoder)
        self.embed_dims = self.decoder.embed_dims
        if any(layer.pre_norm for layer in self.decoder.layers):
            raise ConfigError('PETRTransformer: operation_order begins with a norm; expected self_attn first')

    def forward(self, tokens: Tensor, positions: Tensor, query_pos: Tensor, padding: Tensor | None) -> Tensor:
        """Return the outputs (L, 1, R, C) of all layers.

        Tokens and their positions are (T, C), camera by camera, row by row; the queries' positions (R, C);
        `padding` (T,) is True where a token shows no picture, None if none does so.
        """
        tokens, positions, query_pos = (x.unsqueeze(1) for x in (tokens, positions, query_pos))
        padding = None if padding is None else padding.unsqueeze(0)
        outputs = self.decoder(torch.zeros_like(query_pos), query_pos, tokens, positions, padding)
        return outputs.transpose(1, 2)
