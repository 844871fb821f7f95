"""The decoder of PETR: queries attend to themselves, then to the tokens of all cameras.

Source: megvii-research/PETR f7525f9, `utils/petr_transformer.py`; parameter names are the checkpoints'.
"""

from typing import Any

from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER
from mmdet.models.utils.builder import TRANSFORMER

from mm2onnx_driving.layers.query_decoder import AttentionLayer, DecoderTransformer
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(TRANSFORMER_LAYER)
class PETRTransformerDecoderLayer(AttentionLayer):
    """An `AttentionLayer` under PETR's name."""


@registered_if_named(TRANSFORMER)
class PETRTransformer(DecoderTransformer):
    """A decoder for `steps.run_decoder`; raises ConfigError for layers that begin with a norm."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if any(layer.pre_norm for layer in self.decoder.layers):
            raise ConfigError('PETRTransformer: operation_order begins with a norm; expected self_attn first')
