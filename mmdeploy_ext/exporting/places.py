"""Where in the user's code a node of a trace comes from."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.util.source_code import is_users_file

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

FRAME = re.compile(r'^(.+?)\((\d+)\): (.+)$', re.MULTILINE)
"""A frame of a node's source: file, line, function."""


def place_of(node: torch._C.Node) -> str:
    """Module and innermost line of the user's code, such as 'backbone.mixer, model.py:12, in forward'."""
    frames = [match.groups() for match in FRAME.finditer(str(node.sourceRange()))]
    lines = [f'{file}:{line}, in {name}' for file, line, name in frames if is_users_file(Path(file))]
    module = '.'.join(filter(None, (part.rpartition('::')[2] for part in node.scopeName().split('/'))))
    return ', '.join(filter(None, (module, *lines[:1])))


def with_places(run_symbolic: Callable[..., Any]) -> Callable[..., Any]:
    """Give errors of the exporter's translation of a node a note with its place."""

    @functools.wraps(run_symbolic)
    def run(graph: Any, block: Any, node: torch._C.Node, *args: Any, **kwargs: Any) -> Any:
        try:
            return run_symbolic(graph, block, node, *args, **kwargs)
        except Exception as error:
            error.add_note(place_of(node))
            raise

    return run
