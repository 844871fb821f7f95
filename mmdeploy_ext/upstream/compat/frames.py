"""The user's code on the stack: whether it reads modules, and in which `try` it is."""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from mmdeploy_ext.base.source_code import OURS, is_users_file

COMPAT = f'{os.path.dirname(__file__)}{os.sep}'


@functools.lru_cache(maxsize=4096)
def is_users(file: str) -> bool:
    """Return whether a file is of the user's modules."""
    return os.path.isabs(file) and is_users_file(Path(file)) and os.path.isfile(file)


def users_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the user's frames, innermost first, up to a script or the code of ours that imports or builds."""
    while frame is not None and frame.f_globals.get('__name__') != '__main__':
        file = frame.f_code.co_filename
        if is_users(file):
            yield frame
        elif file.startswith(f'{OURS}{os.sep}') and not file.startswith(COMPAT):
            return
        frame = frame.f_back


def is_importing(frame: FrameType) -> bool:
    """Return whether the body of a module of the user's runs."""
    return any(users.f_code.co_name == '<module>' for users in users_frames(frame))


def place(frame: FrameType) -> str:
    """Return FILE:LINE."""
    return f'{frame.f_code.co_filename}:{frame.f_lineno}'


def users_place(frame: FrameType) -> str:
    """Return FILE:LINE of the user's innermost frame, or ''."""
    return next(map(place, users_frames(frame)), '')


def tried_at(frame: FrameType, error: type[BaseException]) -> str:
    """Return FILE:LINE of the innermost frame of the user's in a `try` that takes such an error, or ''."""
    names = {base.__name__ for base in error.__mro__}
    for users in users_frames(frame) if is_users(frame.f_code.co_filename) else ():
        for first, last, taken in _tries(users.f_code.co_filename):
            if first <= users.f_lineno <= last and names & taken:
                return place(users)
    return ''


@functools.lru_cache(maxsize=1024)
def _tries(file: str) -> list[tuple[int, int, set[str]]]:
    """First and last line of each `try` or `suppress` of a file, and names of the errors that it takes."""
    blocks = []
    for node in ast.walk(parsed(file)):
        kinds: list[ast.expr | None] = []
        if isinstance(node, ast.Try | ast.TryStar):
            kinds = [handler.type for handler in node.handlers]
        elif isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            kinds = [arg for call in calls if 'suppress' in ast.unparse(call.func) for arg in call.args]
        names = {'BaseException'} if None in kinds else set()
        for kind in filter(None, kinds):
            names |= {getattr(part, 'attr', getattr(part, 'id', '')) for part in ast.walk(kind)}
        if names:
            blocks.append((node.body[0].lineno, node.body[-1].end_lineno or 0, names))
    return blocks


def parsed(file: str) -> ast.Module:
    """Return the syntax tree of a file, empty if it cannot be read."""
    try:
        return ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])
