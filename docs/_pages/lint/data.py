"""Tensors that the examples are traced on and later meet; small, and far enough from ties."""

from __future__ import annotations

import torch


def rows(count: int = 4) -> torch.Tensor:
    """Return (count, 3) rising positive numbers."""
    return torch.arange(3.0 * count).reshape(count, 3) / 10


def falling() -> torch.Tensor:
    """Return (4, 3) falling numbers, the later ones negative."""
    return 0.5 - rows()


def one() -> tuple[torch.Tensor, ...]:
    """Return the traced input of most examples."""
    return (rows(),)


def other() -> tuple[torch.Tensor, ...]:
    """Return other values of the same shape."""
    return (falling(),)


def more() -> tuple[torch.Tensor, ...]:
    """Return more rows."""
    return (rows(6),)


BATCH = {0: {0: 'N'}}
"""The rows of input 0 are dynamic."""
