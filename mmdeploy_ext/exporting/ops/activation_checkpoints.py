"""Activation checkpoints, which save memory in training, and which TorchScript's exporter cannot export.

Backbones of research repositories call `torch.utils.checkpoint` whenever their config says so, in tests, too.
Its reentrant form, the default, is a function of autograd: to a trace it is one operator of Python.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch.utils import checkpoint


class _DirectCall:
    """Stands for `CheckpointFunction`: it calls the function that it was given."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


@contextlib.contextmanager
def without_checkpoints() -> Iterator[None]:
    """Inside the block functions under a reentrant checkpoint are called directly, as without a checkpoint.

    That holds for the whole process.
    """
    with mock.patch.object(checkpoint, 'CheckpointFunction', _DirectCall):
        yield
