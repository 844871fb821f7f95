"""On a machine without a GPU, CUDA devices of the user's code mean the CPU.

`.cuda()`, `.to('cuda')`, `device='cuda'` and `torch.cuda.current_device()` work while the user's modules are
read, and in a model whose code names CUDA. `torch.cuda.is_available()` says the truth.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.upstream.compat.import_hook import has_gpu, patched
from mmdeploy_ext.upstream.compat.patches_vendored import is_users, users_place

places: dict[str, None] = {}
"""FILE:LINE of the user's where CUDA meant the CPU in this process."""
NEED_GPU = dict(
    current_device=lambda: 0,
    empty_cache=lambda: None,
    set_device=lambda device: None,
    synchronize=lambda device=None: None,
    **{
        f'{name}Tensor': getattr(torch, f'{name}Tensor')
        for name in ('Float', 'Double', 'Half', 'Long', 'Int', 'Short', 'Byte', 'Bool')
    },
)
"""Names of `torch.cuda` -> what they are without a GPU."""
TAKE_INDEX = (torch.device, torch.Tensor.to, torch.Tensor.cuda, torch._C._nn._parse_to)
"""Functions for whose arguments an integer is a GPU."""
_lasting = contextlib.ExitStack()


class CudaAsCpu(TorchFunctionMode):
    """Functions of PyTorch get the CPU where they are asked for CUDA."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, with_index = kwargs or {}, function in TAKE_INDEX
        on_cpu = [_on_cpu(value, with_index) for value in args]
        named = {name: _on_cpu(value, name == 'device') for name, value in kwargs.items()}
        pairs = zip([*args, *kwargs.values()], [*on_cpu, *named.values()], strict=True)
        is_asked = any(old is not new for old, new in pairs)
        if (is_asked or function is torch.Tensor.cuda) and (place := users_place(sys._getframe(1))):
            places[place] = None
        if function is torch.Tensor.cuda:
            return args[0]
        if is_asked and function is torch.device:
            return torch.device('cpu')
        return function(*on_cpu, **named)


def _on_cpu(value: Any, with_index: bool) -> Any:
    """A device, a name of one or of a type, or with `with_index` the number of a GPU, on the CPU."""
    if isinstance(value, str) and value.startswith('torch.cuda.'):
        return value.replace('.cuda', '')
    is_name = isinstance(value, str) and value.startswith('cuda')
    is_device = isinstance(value, torch.device) and value.type == 'cuda'
    return 'cpu' if is_name or is_device or (with_index and type(value) is int) else value


@contextlib.contextmanager
def cuda_as_cpu() -> Iterator[None]:
    """Let CUDA mean the CPU inside the block, on a machine without a GPU."""
    if has_gpu():
        yield
        return
    with patched(torch.cuda, **NEED_GPU), CudaAsCpu():
        yield


def start_for(model: torch.nn.Module) -> None:
    """Let CUDA mean the CPU from now on, if a module in a package of the model's classes names CUDA.

    It lasts for the process, since code outside of this package runs the model as well: `torch.onnx.export`,
    mmdet's test loop, `with_parts`.
    """
    packages = {kind.__module__.partition('.')[0] for part in model.modules() for kind in type(part).__mro__}
    files = {
        getattr(module, '__file__', None) or ''
        for name, module in list(sys.modules.items())
        if name.partition('.')[0] in packages
    }
    if any(is_users(file) and b'cuda' in Path(file).read_bytes() for file in files):
        _start()


@functools.cache
def _start() -> None:
    _lasting.enter_context(cuda_as_cpu())
