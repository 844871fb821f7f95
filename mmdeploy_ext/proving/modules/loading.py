"""Modules and samples named on the command line: `FILE.py:function`, and arrays in .npz files."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.errors import UsageError, one_line
from mmdeploy_ext.base.user_functions import load_module

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np


def load_function(target: str) -> Callable[..., Any]:
    file, _, name = target.rpartition(':')
    if not file or not name:
        raise UsageError(f'{target}: expected FILE.py:function')
    return getattr(load_module(file, (name,)), name)


def call_function(target: str) -> Any:
    """Return the result of `FILE.py:function`, a generator's as a list; UsageError: it raises."""
    function = load_function(target)
    try:
        result = function()
        return list(result) if inspect.isgenerator(result) else result
    except (Exception, SystemExit) as error:
        raise UsageError(f'{target}: raises {type(error).__name__}: {one_line(error)}') from error


def make_module(target: str) -> Callable[..., Any]:
    """Return the module that `FILE.py:function` makes; UsageError: it makes none."""
    module = call_function(target)
    if not callable(module):
        kind = type(module).__name__
        raise UsageError(f'{target}: returns a {kind}; expected an nn.Module or a function of tensors')
    return module


def make_samples(target: str) -> list[Any]:
    """Return the samples (`calls.read_call`) of `FILE.py:function`."""
    samples = call_function(target)
    if not isinstance(samples, Iterable):
        raise UsageError(f'--samples {target}: got {samples!r}, expected an iterable of samples')
    return list(samples)


def read_samples(files: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Return a sample, name -> array, per .npz file; UsageError: unreadable or empty."""
    samples = []
    for file in files:
        sample = load_arrays(file)
        if '' in sample:
            raise UsageError(f'{file}: is a single array; expected a .npz file with one array per argument')
        if not sample:
            raise UsageError(f'{file}: is empty; expected one array per argument of the module')
        samples.append(sample)
    return samples
