"""Layers of mmcv's transformers for graphs of any size, batch and padding.

Sources: mmdet 2.28.2 `utils/transformer.py`; mmcv-full 1.7.2 `cnn/bricks/transformer.py`
(`BaseTransformerLayer`).
Glossary: B batch, Q queries, D embedding, S tokens of all levels, L levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from mmcv.cnn.bricks.transformer import TransformerLayerSequence

from mmdeploy_ext.upstream.models.conditional_detr import among_themselves, attend_to, run_layer

if TYPE_CHECKING:
    import functools
    from collections.abc import Sequence

    from torch import nn

    from mmdeploy_ext.families.common.padding import PaddedMap


def encode_tokens(
    encoder: nn.Module, tokens: torch.Tensor, position: torch.Tensor, padded: torch.Tensor
) -> torch.Tensor:
    """Run a `DetrTransformerEncoder`: tokens (B, S, D) attend to each other.

    `position` is (B or 1, S, D); `padded` (B, 1, 1, S) bool masks tokens.
    """
    for layer in encoder.layers:
        tokens = run_layer(layer, tokens, dict(self_attn=among_themselves(position, padded)))
    return tokens if encoder.post_norm is None else encoder.post_norm(tokens)


def decode_queries(
    decoder: nn.Module,
    memory: torch.Tensor,
    position: torch.Tensor,
    query_position: torch.Tensor,
    padded: torch.Tensor,
) -> torch.Tensor:
    """Run a `DetrTransformerDecoder` on queries of zeros; return the last queries (B, Q, D).

    `memory` (B, S, D), `position` (B or 1, S, D), `query_position` (1, Q, D), `padded` (B, 1, 1, S) bool
    masks tokens.
    """
    key = memory + position

    def cross_attend(attention: nn.Module, query: torch.Tensor) -> torch.Tensor:
        return attend_to(attention, query + query_position, key, memory, padded)

    attend = dict(self_attn=among_themselves(query_position), cross_attn=cross_attend)
    query = for_every_image(torch.zeros_like(query_position), memory.shape[0])
    for layer in decoder.layers:
        query = run_layer(layer, query, attend)
    return query if decoder.post_norm is None else decoder.post_norm(query)


def for_every_image(learned: torch.Tensor, batch: int | torch.Tensor | torch.SymInt) -> torch.Tensor:
    """Return learned queries (1, Q, D) as (B, Q, D)."""
    if isinstance(batch, torch.SymInt):
        return learned.repeat(batch, 1, 1)
    return learned.expand(batch, -1, -1)


def tokens_inside(levels: Sequence[PaddedMap]) -> torch.Tensor:
    """Return (B, S, 1) float32, 1 in the image, 0 in padding."""
    return torch.cat([level.inside() for level in levels], 1)[..., None]


def reference_points(levels: Sequence[PaddedMap], ratios: torch.Tensor) -> torch.Tensor:
    """Return (B, S, L, 2): x, y of every token in every map, shares of the map; `ratios` are (B, L, 2)."""
    centres = []
    for index, level in enumerate(levels):
        y = (level.rows.place + 0.5) / (ratios[:, index, 1, None] * level.rows.cells)
        x = (level.columns.place + 0.5) / (ratios[:, index, 0, None] * level.columns.cells)
        centres.append(level.grid(y, x))
    return torch.cat(centres, 1)[:, :, None] * ratios[:, None]


def encode_points(
    encoder: nn.Module,
    tokens: torch.Tensor,
    position: torch.Tensor,
    reference: torch.Tensor,
    attend_points: functools.partial,
) -> torch.Tensor:
    """Run a `DetrTransformerEncoder`: tokens (B, S, D) attend to points of all maps.

    `position` is (B or 1, S, D); `attend_points` is `attend_tokens` with `keep` and `sizes`.
    """

    def attend(attention: nn.Module, query: torch.Tensor) -> torch.Tensor:
        return attend_points(attention, query + position, query, reference_points=reference)

    for layer in encoder.layers:
        tokens = run_layer(layer, tokens, dict(self_attn=attend))
    without_norm = encoder.post_norm is None or type(encoder).forward is TransformerLayerSequence.forward
    return tokens if without_norm else encoder.post_norm(tokens)
