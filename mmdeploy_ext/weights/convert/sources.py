"""Checkpoints of other repositories that are given unconverted: the message, and what converts them."""

import shlex
from collections.abc import Callable, Collection
from typing import Any

from mmdeploy_ext.core.commands import command

KNOWN: list[Callable[[str, str, Collection[Any]], str]] = []
"""(path, found, keys) -> the message, '' where it is none of that repository; the modules of names
register theirs. `found` is 'unreadable' (by PyTorch; no keys), 'content' (a dict without a state dict) or
'tensors' (a state dict, by the names of its tensors)."""


def advice(path: str, found: str, keys: Collection[Any] = ()) -> str:
    """Return the message for a file of a known repository; '' for any other."""
    return next((text for known in KNOWN if (text := known(path, found, keys))), '')


def conversion(name: str, path: str) -> str:
    """Return the command line that converts a file; `name` is of `core/commands.py`."""
    return f'{command(name)} {shlex.quote(path)} OUT.pth --config CONFIG'
