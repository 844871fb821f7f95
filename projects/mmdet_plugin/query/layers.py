"""The layers of mmcv's transformers, batch first, with what attends given from outside.

Source of the algorithm: mmcv-full 1.7.2 `cnn/bricks/transformer.py` (`BaseTransformerLayer`).

Glossary: B batch, Q queries, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.exporting.ops.attention import multi_head

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn

    Attend = Callable[[nn.Module, torch.Tensor], torch.Tensor]
    """(attention of mmcv, (B, Q, D)) -> (B, Q, D), without its shortcut."""


def run_layer(layer: nn.Module, query: torch.Tensor, attend: Mapping[str, Attend]) -> torch.Tensor:
    """Run one layer of an encoder or decoder.

    Args:
        layer: mmcv's `BaseTransformerLayer`.
        query: (B, Q, D).
        attend: 'self_attn' and, of a decoder, 'cross_attn' -> what attends.

    Returns:
        (B, Q, D).
    """
    attentions, norms, ffns = iter(layer.attentions), iter(layer.norms), iter(layer.ffns)
    identity = query
    for step in layer.operation_order:
        if step == 'norm':
            query = next(norms)(query)
        elif step == 'ffn':
            query = next(ffns)(query, identity if layer.pre_norm else None)
        else:
            found = attend[step](next(attentions), query)
            query = identity = found + (identity if layer.pre_norm else query)
    return query


def attend_to(
    attention: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run mmcv's `MultiheadAttention` without its shortcut.

    Args:
        attention: its module.
        query: (B, Q, D), positions added.
        key: (B, K, D), positions added.
        value: (B, K, D).
        mask: bool, broadcast to (B, M, Q, K); True where a query must not look.

    Returns:
        (B, Q, D).
    """
    own = attention.attn
    mixed = multi_head((query, key, value), own.in_proj_weight, own.in_proj_bias, own.num_heads, mask)
    return own.out_proj(mixed)


def among_themselves(position: torch.Tensor, mask: torch.Tensor | None = None) -> Attend:
    """Return what lets tokens look at each other: queries and keys have positions (B or 1, Q, D)."""

    def attend(attention: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        placed = tokens + position
        return attend_to(attention, placed, placed, tokens, mask)

    return attend
