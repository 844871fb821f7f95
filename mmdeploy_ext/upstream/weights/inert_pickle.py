"""A `pickle` for `torch.load` that runs no code: names besides those of tensors become inert objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from mmdeploy_ext.base.plain_pickle import ALLOWED, PlainUnpickler

TENSORS = {
    ('torch._utils', '_rebuild_tensor'): torch._utils._rebuild_tensor,
    ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
    ('torch._utils', '_rebuild_parameter'): torch._utils._rebuild_parameter,
    ('torch', 'Size'): torch.Size,
}
"""Functions that build tensors, by module and name; torch itself maps storages and reads their bytes."""


class StandIn:
    """Stands for an object of a class that is not loaded, and keeps its state."""

    name = ''
    dump_patches = False  # torch asks classes of old files whether it may write a patch

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        """Unpickling mostly skips __init__."""
        instance = object.__new__(cls)
        instance.state = {}
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take any arguments."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> StandIn:
        """The result is unknown: another stand-in."""
        return StandIn()

    def _ignore(self, *args: Any) -> None:
        """Items of the dict, list or set that a class inherits from."""

    __setitem__ = append = extend = add = update = _ignore


class InertUnpickler(PlainUnpickler):
    """Loads plain values and tensors, and a stand-in for every other name."""

    allowed = ALLOWED | TENSORS

    def refused(self, path: str) -> type[StandIn]:
        return type('StandIn', (StandIn,), dict(name=path))


def _load(file: Any, **options: Any) -> Any:
    return InertUnpickler(file, **options).load()


INERT_PICKLE = SimpleNamespace(Unpickler=InertUnpickler, load=_load, __name__='inert_pickle')
"""Replaces the module `pickle` in `torch.load`."""
