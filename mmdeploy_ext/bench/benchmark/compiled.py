"""The model in `torch.compile`, without an export."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch

from mmdeploy_ext.base.errors import EngineError

BACKEND = 'inductor'
RECOMPILE_LIMIT = 64
"""Graphs per network: a head is called once per level, and the number of regions varies."""


def networks(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the largest parts of a detector with a `forward` and parameters."""
    for child in model.children():
        if next(child.parameters(), None) is None:
            continue
        if type(child).forward is torch.nn.Module.forward or isinstance(child, torch.nn.ModuleList):
            yield from networks(child)
        else:
            yield child


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """Copy of a model with networks that compile in their first run, inside `while_compiling`."""
    copied = copy.deepcopy(model)
    for part in networks(copied):
        part.forward = torch.compile(part.forward, backend=BACKEND)
    return copied


@contextlib.contextmanager
def while_compiling() -> Iterator[None]:
    """Freeze weights into the code of models that are compiled and run inside."""
    import torch._dynamo
    import torch._inductor.config
    from torch._inductor.utils import fresh_cache

    limits = torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT)
    with fresh_cache(), torch._inductor.config.patch(freezing=True), limits:
        yield


def first_run(run: Callable[[], object]) -> None:
    """Run a `compiled` model for the first time; that compiles it."""
    try:
        run()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = next((line for line in lines if 'rror' in line), lines[0] if lines else '')
        raise EngineError(f'torch.compile: {type(error).__name__}: {message}') from error
