"""What a user's code has put between PyTorch and every model: global hooks, modes, kernels of operators.

They act wherever PyTorch computes, also on what a graph computes by itself. Needs no mmcv.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.modules import module as modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from mmdeploy_ext.core.foreign_functions import is_users_value
from mmdeploy_ext.core.source_code import is_users_file

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNEL = re.compile(r'^(\w+): registered at (.+):\d+ ::', re.MULTILINE)
"""Dispatch key and file of a kernel, as `torch._C._dispatch_dump` writes them."""
ONLY_SHAPES = 'Meta'
"""The dispatch key of kernels that compute shapes alone."""


def interceptions() -> list[str]:
    """Return the names of global hooks, open modes, methods of `Module` and kernels that are the user's.

    Hooks are those before and after `forward`, kernels those in Python of operators `aten::...`. A name says
    what it is: `the global hook scaled`, `the mode Clamped`, `the kernel of aten::relu`, or a method such as
    `torch.nn.Module.__call__`.
    """
    names = []
    for hook in (*modules._global_forward_pre_hooks.values(), *modules._global_forward_hooks.values()):
        if is_users_value(hook):
            name = getattr(hook, '__qualname__', type(hook).__qualname__)
            names.append(f'the global hook {name}')
    open_modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    names += [f'the mode {type(mode).__name__}' for mode in open_modes if is_users_value(type(mode))]
    for name, value in vars(torch.nn.Module).items():
        if callable(value) and not isinstance(value, type) and is_users_value(value):
            names.append(f'torch.nn.Module.{name}')
    names += [f'the kernel of {operator}' for operator in _users_operators()]
    return list(dict.fromkeys(names))


def _users_operators() -> Iterator[str]:
    """Yield the operators of PyTorch that compute by a kernel of the user's, which is in Python."""
    entries = (entry.split('/') for entry in torch.library._impls)
    replaced = {name for space, name, key in entries if space == 'aten' and key != ONLY_SHAPES}
    for operator in sorted(f'aten::{name}' for name in replaced):
        kernels = KERNEL.findall(torch._C._dispatch_dump(operator))
        if any(
            file.endswith('.py') and is_users_file(Path(file)) for key, file in kernels if key != ONLY_SHAPES
        ):
            yield operator
