"""Errors of PyTorch's functions that a user's code catches: PyTorch's tracer ends the process at one.

A call that fails leaves a node without outputs in the graph that is traced; torch 2.13 reads them all the
same (segmentation fault in `torch.jit.trace` and in `torch.onnx.export`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.model_classes import files_of_users_classes
from mmdeploy_ext.core.source_code import is_users_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class _Failures(TorchFunctionMode):
    """Notes the calls of PyTorch that raise a RuntimeError, with the line of no package that led there."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            name = resolve_name(func) or getattr(func, '__name__', '')
            # the innermost code of the user's; the first of all if there is none
            frame = sys._getframe(1)
            while frame.f_back is not None and not is_users_file(Path(frame.f_code.co_filename)):
                frame = frame.f_back
            place = f'{Path(frame.f_code.co_filename).name}:{frame.f_lineno}'
            self.texts.append(f'{place} catches what {name} raises ({str(error).splitlines()[0]:.100})')
            raise


def check_no_error_is_caught(module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    """Refuse to trace a module of the user's that goes on after a RuntimeError of PyTorch's functions.

    It is run once, on copies of the inputs, and any code that catches the error counts. Modules without a
    class of the user's are not run.

    Args:
        module: the module, in evaluation mode.
        inputs: its arguments, as they will be traced.

    Raises:
        UsageError: an error is caught; the message names the user's line that led to it.
    """
    if not files_of_users_classes(module):
        return
    failures = _Failures()
    with torch.no_grad(), failures:
        try:
            module(*(value.clone() for value in inputs))
        except Exception:  # the tracer meets it, too, and says so
            return
    if failures.texts:
        raise UsageError(
            f"{failures.texts[0]}; PyTorch's tracer cannot go on after it: test shapes and values before the "
            f'call, or use --exporter dynamo'
        )
