"""The model itself in `torch.compile`: what a user tries before any export.

Inductor, with the weights frozen into its code. What mmdet does between the networks (priors, top-k,
suppression) stays as it is, in Python: that is the model, and nobody has rewritten it.
"""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING

import torch

from mmdeploy_ext.core.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BACKEND = 'inductor'
RECOMPILED = 64
"""Graphs that one network may have: a head is called once per level, and regions come in other numbers."""


def networks(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the largest parts of a detector that are networks: those with a `forward` of their own.

    A detector's own is that of training; of what has none (lists, the heads of regions) the parts are taken.
    """
    for child in model.children():
        if next(child.parameters(), None) is None:
            continue
        if type(child).forward is torch.nn.Module.forward or isinstance(child, torch.nn.ModuleList):
            yield from networks(child)
        else:
            yield child


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a model whose networks are compiled when they first run; see `while_compiling`."""
    copied = copy.deepcopy(model)
    for part in networks(copied):
        part.forward = torch.compile(part.forward, backend=BACKEND)
    return copied


@contextlib.contextmanager
def while_compiling() -> Iterator[None]:
    """Inside the block, which holds every run of a `compiled` model, weights are frozen into the code.

    What is compiled lies in a folder that goes: inductor's own keeps half a file of a run that was ended, and
    every later one fails with it (`file too short`).
    """
    import torch._dynamo
    import torch._inductor.config
    from torch._inductor.utils import fresh_cache

    limits = torch._dynamo.config.patch(recompile_limit=RECOMPILED)
    with fresh_cache(), torch._inductor.config.patch(freezing=True), limits:
        yield


def for_this_process(model: torch.nn.Module) -> torch.nn.Module:
    """Return `compiled`, in a process that does nothing else."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return compiled(model)


def first_run(run: Callable[[], object]) -> None:
    """Run a `compiled` model for the first time, which compiles it; EngineError with what PyTorch says."""
    try:
        run()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = next((line for line in lines if 'rror' in line), lines[0] if lines else '')
        raise EngineError(f'torch.compile: {type(error).__name__}: {said}') from error
