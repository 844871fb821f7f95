"""Checkpoints of other repositories that people give by mistake: how to tell them, and what converts them."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


@dataclasses.dataclass(frozen=True)
class Source:
    """One spelling of one repository.

    Attributes:
        tool: that converts its files.
        keys: names of tensors -> what such a file is, '' for any other.
        content: keys of a file that holds no state dict -> what it may be, '' for any other.
        unreadable: path of a file that PyTorch cannot read -> what a person is told, '' for any other.
    """

    tool: str
    keys: Callable[[Collection[str]], str] = lambda keys: ''
    content: Callable[[Collection[Any]], str] = lambda keys: ''
    unreadable: Callable[[str], str] = lambda path: ''

    def command(self, path: str) -> str:
        """Return the command that converts a file."""
        return f'python {self.tool} {shlex.quote(path)} OUT.pth --config CONFIG'


SOURCES: list[Source] = []
"""In the order in which they are asked; the modules of names add theirs, see `checkpoint.py`."""


def refusal(path: str) -> str:
    """Return what a person is told about a file that PyTorch cannot read; '' where no source knows it."""
    return next((text for source in SOURCES if (text := source.unreadable(path))), '')


def hint(path: str, keys: Collection[Any]) -> str:
    """Return '; of X? Convert it: ...' of the keys of a file without a state dict; '' where none knows."""
    found = ((source, source.content(keys)) for source in SOURCES)
    return next((f'; of {what}? Convert it: {source.command(path)}' for source, what in found if what), '')


def advice(path: str, keys: Collection[str]) -> str:
    """Return what a file with these names of tensors is and how to convert it; '' where none knows it."""
    found = ((source, source.keys(keys)) for source in SOURCES)
    return next(
        (f'{path}: {what}; convert it first: {source.command(path)}' for source, what in found if what), ''
    )
