"""`torch.linspace` with as many steps as an axis has, which TorchScript's exporter of torch 2.13 gets wrong.

It divides the interval by the number of steps less one, so that the only value of a single step is 0 / 0:
mmcv's `GeneralizedAttention` gave NaN for a map whose keys are one row or one column. From a start or to an
end that is no whole number it makes float64, whatever type was asked for; no GridSample behind it takes that.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch


@contextlib.contextmanager
def linspace_of_one_step() -> Iterator[None]:
    """Inside the block a traced `torch.linspace` holds for a single step, too: its only value is the start.

    The block is for a trace by TorchScript in which the number of steps may be the size of an axis, that is,
    a tensor; calls with a number are left as they are. Values are not rounded to a type of integers. It holds
    for the whole process.
    """
    linspace = torch.linspace

    def divided(start: Any, end: Any, steps: Any, **options: Any) -> torch.Tensor:
        if not isinstance(steps, torch.Tensor):
            return linspace(start, end, steps, **options)
        dtype = options.pop('dtype', None) or torch.get_default_dtype()
        step = (end - start) / torch.clamp(steps - 1, min=1)
        return torch.arange(steps, **options).to(dtype) * step + start

    with mock.patch.object(torch, 'linspace', divided):
        yield


@contextlib.contextmanager
def linspace_of_its_type() -> Iterator[None]:
    """Inside the block a traced `torch.linspace` from or to a float is a constant of the type it is given.

    The block is for a trace by TorchScript of a fixed size, in which the number of steps may be the size of
    an axis, that is, a tensor; calls with a number are left as they are. It holds for the whole process.
    """
    linspace = torch.linspace

    def constant(start: Any, end: Any, steps: Any, **options: Any) -> torch.Tensor:
        dtype = options.get('dtype') or torch.get_default_dtype()
        if not isinstance(steps, torch.Tensor) or not any(isinstance(value, float) for value in (start, end)):
            return linspace(start, end, steps, **options)
        values = linspace(start, float(end), int(steps), **options)
        return torch.tensor(values.tolist(), dtype=dtype, device=values.device)

    with mock.patch.object(torch, 'linspace', constant):
        yield
