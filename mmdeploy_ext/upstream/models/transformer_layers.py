"""Layers of mmcv's transformers, batch first, with exportable attentions.

Source: mmcv-full 1.7.2, `cnn/bricks/transformer.py` (`BaseTransformerLayer`).
Glossary: B batch, Q queries, K keys, D embedding, M heads of an attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.upstream.operators.attention import multi_head

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    Attend = Callable[[nn.Module, Tensor], Tensor]
    """(attention of mmcv, queries (B, Q, D)) -> (B, Q, D), without its shortcut."""


def run_layer(layer: nn.Module, query: Tensor, attend: Mapping[str, Attend]) -> Tensor:
    """Run one `BaseTransformerLayer` of mmcv on (B, Q, D)."""
    attentions, norms, ffns = iter(layer.attentions), iter(layer.norms), iter(layer.ffns)
    identity = query
    for step in layer.operation_order:
        if step == 'norm':
            query = next(norms)(query)
        elif step == 'ffn':
            query = next(ffns)(query, identity if layer.pre_norm else None)
        else:
            attended = attend[step](next(attentions), query)
            query = identity = attended + (identity if layer.pre_norm else query)
    return query


def attend_to(
    attention: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Run mmcv's `MultiheadAttention` without its shortcut: query (B, Q, D) to (B, Q, D).

    `key` and `value` are (B, K, D); positions are added; `mask`, bool, broadcast to (B, M, Q, K), is True
    where a query must not look.
    """
    layer = attention.attn
    heads = multi_head((query, key, value), layer.in_proj_weight, layer.in_proj_bias, layer.num_heads, mask)
    return layer.out_proj(heads)


def among_themselves(position: Tensor, mask: Tensor | None = None) -> Attend:
    """Return a self-attention with positions (B or 1, Q, D) added to queries and keys."""

    def attend(attention: nn.Module, tokens: Tensor) -> Tensor:
        positioned = tokens + position
        return attend_to(attention, positioned, positioned, tokens, mask)

    return attend
