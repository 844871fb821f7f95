"""What PyTorch warns of while it traces a user's code, with file and line."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from mmdeploy_ext.core.source_code import is_users_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SILENT = ('equal', 'allclose', 'is_nonzero')
"""Functions that give a plain bool of a tensor's values, of which the tracer does not warn."""


@dataclasses.dataclass(frozen=True)
class CodeWarning:
    """A line of the user's code at which a trace keeps what held for the traced example.

    Attributes:
        file: absolute path.
        line: number of the line.
        text: what PyTorch warns of, or which function is called.
    """

    file: str
    line: int
    text: str


_collected: contextvars.ContextVar[list[CodeWarning] | None] = contextvars.ContextVar(
    'warnings', default=None
)


@contextlib.contextmanager
def recorded_warnings(records: list[CodeWarning]) -> Iterator[None]:
    """Add the warnings of all exports inside the block to `records`, each once."""
    token = _collected.set(records)
    try:
        yield
    finally:
        _collected.reset(token)


@contextlib.contextmanager
def tracer_warnings() -> Iterator[None]:
    """Around one export: hide all warnings, and record those about the user's code.

    The functions of `SILENT` are wrapped, not seen by a `TorchFunctionMode`: under a mode PyTorch chooses
    another code path for attention, and reports the mode's line as the one that it warns of.
    """
    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as stack:
        warnings.simplefilter('ignore')
        warnings.simplefilter('always', torch.jit.TracerWarning)
        for owner in (torch, torch.Tensor):
            for name in SILENT:
                noted = _noted(getattr(owner, name), name)
                stack.enter_context(mock.patch.object(owner, name, noted))
        yield
    for warning in caught:
        text = str(warning.message).partition(' might cause')[0]
        _record(warning.filename, warning.lineno, f'PyTorch warns "{text} ..."')


def _noted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        if torch.jit.is_tracing():
            caller = sys._getframe(1)
            _record(
                caller.f_code.co_filename, caller.f_lineno, f'calls {name}(), of which PyTorch does not warn'
            )
        return function(*args, **kwargs)

    return noted


def _record(file: str, line: int, text: str) -> None:
    records, entry = _collected.get(), CodeWarning(file, line, text)
    if records is not None and entry not in records and is_users_file(Path(file).resolve()):
        records.append(entry)
