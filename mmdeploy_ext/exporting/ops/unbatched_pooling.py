"""Pooling of maps without an axis for the batch, which PyTorch's exporter by TorchScript does not know."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from mmdeploy_ext.compat.import_hook import patched

AXES = {
    f'{kind}_pool{axes}d': axes
    for kind in ('avg', 'max', 'adaptive_avg', 'adaptive_max')
    for axes in (1, 2, 3)
}
"""Function of `torch.nn.functional` -> number of axes that it pools."""


@contextlib.contextmanager
def with_a_batch() -> Iterator[None]:
    """Inside the block, functions of `AXES` give maps (C, ...) a batch of one, and take it off their result.

    PyTorch takes (C, ...) and (B, C, ...). Its exporter takes the first axis for the batch: it writes nodes
    that no engine loads, or, of adaptive pooling in two axes, others that pool one axis only. The block holds
    for the whole process.
    """

    def batched(pool: Callable[..., Any], axes: int) -> Callable[..., Any]:
        @functools.wraps(pool)
        def pooled(input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if input.dim() != axes + 1:
                return pool(input, *args, **kwargs)
            result = pool(input[None], *args, **kwargs)
            return tuple(part[0] for part in result) if isinstance(result, tuple) else result[0]

        return pooled

    with patched(F, **{name: batched(getattr(F, name), axes) for name, axes in AXES.items()}):
        yield
