"""The layers of mmcv's transformers, batch first, with what attends given from outside.

Source of the algorithm: mmcv-full 1.7.2 `cnn/bricks/transformer.py` (`BaseTransformerLayer`).

Glossary: B batch, Q queries, S tokens, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmdeploy_ext.exporting.ops.attention import multi_head

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    Attend = Callable[[nn.Module, torch.Tensor], torch.Tensor]
    """(attention of mmcv, (B, Q, D)) -> (B, Q, D), without its shortcut."""


def run_layer(layer: nn.Module, query: torch.Tensor, attend: Mapping[str, Attend]) -> torch.Tensor:
    """Run one `BaseTransformerLayer` of mmcv on (B, Q, D), and return as much.

    `attend` has what attends: 'self_attn' and, of a decoder, 'cross_attn'.
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
    """Run mmcv's `MultiheadAttention` without its shortcut: query (B, Q, D) to (B, Q, D).

    `key` and `value` are (B, K, D); query and key have positions added; `mask`, bool, broadcast to
    (B, M, Q, K), is True where a query must not look.
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


def encode_tokens(
    encoder: nn.Module, tokens: torch.Tensor, position: torch.Tensor, padded: torch.Tensor
) -> torch.Tensor:
    """Let all tokens (B, S, D) of a map look at each other, by the layers of a `DetrTransformerEncoder`.

    `position` is (B or 1, S, D); `padded` (B, 1, 1, S) bool has tokens that no token looks at.
    """
    for layer in encoder.layers:
        tokens = run_layer(layer, tokens, dict(self_attn=among_themselves(position, padded)))
    return tokens if encoder.post_norm is None else encoder.post_norm(tokens)


def decode_queries(
    decoder: nn.Module,
    memory: torch.Tensor,
    position: torch.Tensor,
    places: torch.Tensor,
    padded: torch.Tensor,
) -> torch.Tensor:
    """Return queries (B, Q, D) that began as zeros and looked at a map; those of the last layer.

    By a `DetrTransformerDecoder`; `memory` (B, S, D) are tokens of the map, `position` (B or 1, S, D) theirs,
    `places` (1, Q, D) those of the queries; `padded` (B, 1, 1, S) bool has tokens that no query looks at.
    """
    key = memory + position

    def look(attention: nn.Module, query: torch.Tensor) -> torch.Tensor:
        return attend_to(attention, query + places, key, memory, padded)

    attend = dict(self_attn=among_themselves(places), cross_attn=look)
    found = for_every_image(torch.zeros_like(places), memory.shape[0])
    for layer in decoder.layers:
        found = run_layer(layer, found, attend)
    return found if decoder.post_norm is None else decoder.post_norm(found)


def for_every_image(learned: torch.Tensor, batch: int | torch.Tensor | torch.SymInt) -> torch.Tensor:
    """Return what is learned, (1, Q, D), as (B, Q, D).

    Of an expanded tensor torch.export freezes a dynamic batch; other graphs stay as their files have them.
    """
    if isinstance(batch, torch.SymInt):
        return learned.repeat(batch, 1, 1)
    return learned.expand(batch, -1, -1)
