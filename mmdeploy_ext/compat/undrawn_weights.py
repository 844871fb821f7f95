"""Modules that are built for their settings, or for the names and shapes of their weights."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.compat.import_hook import patched

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

DRAWING = (
    'uniform_', 'normal_', 'trunc_normal_', 'xavier_uniform_', 'xavier_normal_',
    'kaiming_uniform_', 'kaiming_normal_', 'orthogonal_', 'sparse_',
)  # fmt: skip
"""Functions of `torch.nn.init` that draw the values of a weight."""


@contextlib.contextmanager
def undrawn_weights() -> Iterator[None]:
    """Inside the block modules are built without drawing their weights by `torch.nn.init`: see `DRAWING`.

    These functions leave a weight as it is, of arbitrary values as a rule; constants, and what a module draws
    by other functions, are set. Drawing takes most of the time of building a module.
    """
    from torch.nn import init

    with patched(init, **dict.fromkeys(DRAWING, _undrawn)):
        yield


def _undrawn(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Return a tensor as it is, in place of a function of `torch.nn.init`."""
    return tensor
