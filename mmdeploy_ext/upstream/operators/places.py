"""Where in the code a node of a trace comes from."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.source_code import LIBRARIES, is_users_file, package_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

FRAME = re.compile(r'^(.+?)\((\d+)\): (.+)$', re.MULTILINE)
"""A frame of a node's source, the innermost first: file, line, function."""
EXPORTER = '/torch/onnx/'
"""In the files of the frames around a trace."""


def place_of(node: torch._C.Node) -> str:
    """Module and line, such as 'backbone.mixer, model.py:12, in forward'.

    The line is the innermost one of the user's code, or of a library besides PyTorch.
    """
    frames = [match.groups() for match in FRAME.finditer(str(node.sourceRange()))]
    frames = [*itertools.takewhile(lambda frame: EXPORTER not in Path(frame[0]).as_posix(), frames)]
    users = [frame for frame in frames if is_users_file(Path(frame[0]))]
    others = [frame for frame in frames if package_of(Path(frame[0])) not in LIBRARIES]
    lines = [f'{file}:{line}, in {name}' for file, line, name in users or others]
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
