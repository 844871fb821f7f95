"""Taps: named intermediate tensors of a model, for dumps and the search for the first difference."""

import contextlib
import contextvars
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mmdeploy_ext.base.errors import UsageError, one_line

# Functions in a Python file that a user names on the command line.


def load_module(file: str, functions: Sequence[str]) -> ModuleType:
    """Run a Python file that has to have these functions; its folder stays on the path.

    UsageError: no such file or function, or an error or an exit while the file runs.
    """
    path = Path(file)
    if not path.is_file():
        raise UsageError(f'{file}: no such file')
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise UsageError(f'{file}: is not a Python file')
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # data classes look there for the names in their annotations
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # sys.exit(0) would read as a proof
        raise UsageError(f'{path}: cannot be run: {type(error).__name__}: {one_line(error)}') from error
    for name in functions:
        if not callable(getattr(module, name, None)):
            raise UsageError(f'{file}: has no function {name!r}; write it, or correct the name')
    return module


_collector: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    'mm2onnx_taps', default=None
)


def tap(name: str, tensor: Any) -> Any:
    """Return `tensor` unchanged; `collect_taps` records it without a copy."""
    if (collected := _collector.get()) is not None:
        collected[name] = tensor
    return tensor


@contextlib.contextmanager
def collect_taps() -> Iterator[dict[str, Any]]:
    """Yield a dict, name -> tensor, that taps of this thread fill inside the block."""
    collected: dict[str, Any] = {}
    token = _collector.set(collected)
    try:
        yield collected
    finally:
        _collector.reset(token)
