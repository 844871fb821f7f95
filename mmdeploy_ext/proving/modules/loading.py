"""Modules and samples named on the command line: `FILE.py:function`, and arrays in .npz files."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.errors import UsageError, one_line
from mmdeploy_ext.graph.io.tensors import CANNOT_READ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def load_function(target: str) -> Callable[..., Any]:
    """Return a function of a Python file; the file is run in any case, and its folder stays on the path.

    The file becomes the module of its name without `.py` in `sys.modules`, unless that has one of this name.

    Args:
        target: 'FILE.py:function'.

    Raises:
        UsageError: no such file or function, or an error or an exit while the file runs.
    """
    file, _, name = target.rpartition(':')
    path = Path(file)
    if not file or not name:
        raise UsageError(f'{target}: expected FILE.py:function')
    if not path.is_file():
        raise UsageError(f'{target}: no such file {path}')
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise UsageError(f'{target}: {path} is no Python file')
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # data classes look there for the names in their annotations
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # sys.exit(0) would read as a proof
        raise UsageError(f'{path}: cannot be run: {type(error).__name__}: {one_line(error)}') from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f'{target}: {path} has no function {name!r}')
    return function


def call_function(target: str) -> Any:
    """Return the result of the function `FILE.py:function`, called without arguments; of a generator a list.

    An exception that it raises, or its exit, becomes a UsageError; for other errors see `load_function`.
    """
    function = load_function(target)
    try:
        result = function()
        return list(result) if inspect.isgenerator(result) else result
    except (Exception, SystemExit) as error:
        raise UsageError(f'{target}: raises {type(error).__name__}: {one_line(error)}') from error


def make_module(target: str) -> Callable[..., Any]:
    """Return the module that the function `FILE.py:function` returns; for errors see `call_function`, too.

    UsageError: it returns nothing that can be called.
    """
    module = call_function(target)
    if not callable(module):
        kind = type(module).__name__
        raise UsageError(f'{target}: returns a {kind}; expected an nn.Module or a function of tensors')
    return module


def make_samples(target: str) -> list[Any]:
    """Return the samples that `FILE.py:function` yields or returns; for errors see `call_function`, too.

    A sample holds the arguments of one call of the module, see `calls.read_call`; it is not checked here.
    UsageError: the function returns nothing that can be walked through.
    """
    samples = call_function(target)
    if not isinstance(samples, Iterable):
        raise UsageError(f'--samples {target}: gives {samples!r}; expected samples, one by one')
    return list(samples)


def read_samples(files: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Return a sample per .npz file, in the order of `files`: name -> array.

    Names are those in the file, which `calls.read_call` takes for arguments of the module or, if all are, for
    inputs of the ONNX file.

    Raises:
        UsageError: a file that is missing, damaged, no .npz file, without an array, or holds pickled objects.
    """
    samples = []
    for file in files:
        try:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise UsageError(f'{file}: is a single array; expected a .npz file with one per argument')
            with arrays:
                sample = {name: arrays[name] for name in arrays.files}
        except FileNotFoundError as error:
            raise UsageError(f'{file}: no such file') from error
        except UsageError:
            raise
        except CANNOT_READ as error:
            raise UsageError(f'{file}: is no .npz file of plain arrays: {one_line(error)}') from error
        if not sample:
            raise UsageError(f'{file}: holds no array; expected one per argument of the module')
        samples.append(sample)
    return samples
