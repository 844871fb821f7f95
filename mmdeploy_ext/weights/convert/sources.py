"""Checkpoints of other repositories that are given unconverted: the message, and what converts them."""

import shlex
from collections.abc import Callable, Collection
from typing import Any

KNOWN: list[Callable[[str, str, Collection[Any]], str]] = []
"""(path, found, keys) -> the message, '' where it is none of that repository; the modules of names
register theirs. `found` is 'unreadable' (by PyTorch; no keys), 'content' (a dict without a state dict) or
'tensors' (a state dict, by the names of its tensors)."""


def advice(path: str, found: str, keys: Collection[Any] = ()) -> str:
    """Return the message for a file of a known repository; '' for any other."""
    return next((text for known in KNOWN if (text := known(path, found, keys))), '')


def command(tool: str, path: str) -> str:
    """Return the command that converts a file."""
    return f'python {tool} {shlex.quote(path)} OUT.pth --config CONFIG'
