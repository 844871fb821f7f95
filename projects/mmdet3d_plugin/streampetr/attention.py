"""The attention modules that StreamPETR configs name.

Source: exiawsh/StreamPETR 95f6470, models/utils/petr_transformer.py; differs in: both are mmcv's attention,
which has the same parameters (`attn.in_proj_weight`, ...) and computes the same. There is no half-precision
path and no CUDA kernel.
"""

from typing import Any

from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.cnn.bricks.transformer import MultiheadAttention

from mmdeploy_ext.core.errors import ConfigError

_announced: set[str] = set()


@ATTENTION.register_module()
class PETRMultiheadAttention(MultiheadAttention):
    """Multi-head attention with identity connection and positions.

    Args:
        dropout: one rate for the attention weights and for the shortcut; replaces `attn_drop` and
            `dropout_layer`.
        fp16: half precision in training, which is refused: mixed precision is set for the whole model.
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


@ATTENTION.register_module()
class PETRMultiheadFlashAttention(PETRMultiheadAttention):
    """A config's flash attention, run as standard attention: same parameters, float32 instead of float16."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _say_once(
            'PETRMultiheadFlashAttention: the standard attention runs instead (same parameters, float32)'
        )


def _say_once(line: str) -> None:
    """Log one warning line, once per process and rank 0."""
    from mmcv.utils import get_logger

    if line not in _announced:
        _announced.add(line)
        get_logger('mm2onnx').warning(line)
