"""Multi-head attention in matrix products, with the parameters of `nn.MultiheadAttention`.

`nn.MultiheadAttention` chooses kernels by the CPU, by gradients and by the layout of its inputs, and its
exports freeze batches; these few lines are one graph for every size.

Glossary: B batch, M heads, D embedding, Q queries, K keys.
"""

import math

import torch
import torch.nn.functional as F


def multi_head(
    sources: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor,
    heads: int,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mixed values (B, Q, D), before the projection of the result.

    Args:
        sources: of queries (B, Q, D), keys and values (B, K, D), positions added.
        weight: (3 * D, D), the projections of all three, one below the other.
        bias: (3 * D,).
        heads: M.
        mask: bool, broadcast to (B, M, Q, K); True where a row must not look at a column.
    """
    query, key, value = (  # (B, T, D) as (B, M, T, D / M)
        F.linear(source, part, shift).unflatten(-1, (heads, -1)).transpose(1, 2)
        for source, part, shift in zip(sources, weight.chunk(3), bias.chunk(3), strict=True)
    )
    logits = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)
    if mask is not None:
        logits = logits.masked_fill(mask, float('-inf'))
    mixed = logits.softmax(-1) @ value
    return mixed.transpose(1, 2).flatten(2)
