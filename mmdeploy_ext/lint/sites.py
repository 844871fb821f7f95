"""Lines of the user's code, and whether a branch, a loop or a guard there takes the value of a call."""

from __future__ import annotations

import ast
import dataclasses
import functools
import linecache
import os
import sys
from pathlib import Path
from types import FrameType

import torch

MACHINERY = str(Path(__file__).parent)
"""Folder of the linter, whose own frames are not the user's code."""
TORCH = str(Path(torch.__file__).parent)
"""Folder of torch."""
THIN = tuple(
    os.path.join(TORCH, *part.split('/'))
    for part in (
        '_tensor.py', 'functional.py', 'overrides.py', 'nn/functional.py', '_jit_internal.py', '_ops.py',
        'utils/_contextlib.py', 'autograd/function.py',
    )
)  # fmt: skip
"""Files of torch that only pass on a call of the user; a call from other files of torch is torch's own."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A line of code.

    Attributes:
        file: as shown: relative to the working directory, or from the package on in libraries.
        line: its number, from 1 on.
        function: name of the function that it is in.
        code: its text.
        library: whether the file belongs to an installed package.
        via: for a line in a library, the user's line that led there; None if there is none.
        waiting: what takes the value: 'branch', 'guard' (an assert, an if that raises), 'loop', 'counted' (a
            `range`), 'unpack' (several names on the left), 'handled' (by a function that asks for
            tensors), or ''.
    """

    file: str
    line: int
    function: str
    code: str
    library: bool = False
    via: Site | None = dataclasses.field(default=None, compare=False)
    waiting: str = ''

    @property
    def text(self) -> str:
        """Return `file:line`."""
        return f'{self.file}:{self.line}'

    def __str__(self) -> str:
        """Return the same: what `print` shows of a finding is a place that an editor can open."""
        return self.text


def caller(through_torch: bool = False) -> Site | None:
    """Return the innermost line outside of torch and of this package's machinery.

    None if torch made the call for itself; with `through_torch` it is then the user's line that led there.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (_is_machinery(frame) or _file(frame) in THIN):
        frame = frame.f_back
    if frame is not None and not through_torch and _file(frame).startswith(TORCH + os.sep):
        return None
    while frame is not None and (_file(frame).startswith(TORCH + os.sep) or _is_machinery(frame)):
        frame = frame.f_back
    return None if frame is None else _site_of(frame)


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename


def _is_machinery(frame: FrameType) -> bool:
    file = _file(frame)
    return os.path.dirname(file) == MACHINERY or file.startswith('<')


def _is_library(file: str) -> bool:
    return 'site-packages' in file or 'dist-packages' in file


def _site_of(frame: FrameType) -> Site:
    file, via = _file(frame), None
    if _is_library(file):
        functions, outer = {frame.f_code.co_name}, frame.f_back
        while outer is not None and _is_library(_file(outer)):
            functions.add(outer.f_code.co_name)
            outer = outer.f_back
        if outer is not None and not _is_machinery(outer) and 'forward' in {*functions, outer.f_code.co_name}:
            via = _plain_site(outer)
    waiting, positions = '', list(frame.f_code.co_positions())
    if frame.f_lasti // 2 < len(positions):
        line, _, column, _ = positions[frame.f_lasti // 2]  # of the running instruction
        if line is not None and column is not None:
            waiting = _waiting_at(file, line, column)
    return dataclasses.replace(_plain_site(frame), library=_is_library(file), via=via, waiting=waiting)


def _plain_site(frame: FrameType) -> Site:
    return site_at(_file(frame), frame.f_lineno, frame.f_code.co_name)


@functools.lru_cache(maxsize=4096)
def site_at(file: str, line: int, function: str = '') -> Site:
    """Return a line of a file, which is a path, as a site, without `via` and `waiting`.

    `function` is the name of the function that the line is in; '' if it is not known.
    """
    return Site(
        _displayed_path(file), line, function, linecache.getline(file, line).strip(), _is_library(file)
    )


def _displayed_path(file: str) -> str:
    """Return a path without what only this machine has."""
    for folder in ('site-packages', 'dist-packages'):
        if folder in file:
            return file.split(f'{folder}{os.sep}')[-1]
    relative = os.path.relpath(file)
    return os.path.basename(file) if relative.startswith('..') else relative


@functools.lru_cache(maxsize=4096)
def _waiting_at(file: str, line: int, column: int) -> str:
    """Return `Site.waiting` of the expression at a line and column of a file."""
    tree = _tree(file)
    if tree is None:
        return ''
    waiting, node, function = '', tree, None
    while node is not None:
        inner = next((child for child in ast.iter_child_nodes(node) if _covers(child, line, column)), None)
        if inner is not None:
            outer_waiting = '' if isinstance(inner, ast.stmt | ast.Lambda) else waiting
            if outer_waiting in ('counted', 'guard'):
                waiting = outer_waiting
            else:
                waiting = _taker(node, inner) or outer_waiting
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                function = inner
            if isinstance(inner, ast.Assign):
                waiting = _use_of(inner, function) or waiting
        node = inner
    return waiting or ('handled' if function is not None and _has_form_for_tensors(function) else '')


def _has_form_for_tensors(function: ast.AST) -> bool:
    """Return whether a function has a call `isinstance(..., torch.Tensor)`: then it has code for traces."""
    return any(
        ast.unparse(step.args[1]).split('.')[-1] == 'Tensor'
        for step in ast.walk(function)
        if isinstance(step, ast.Call) and len(step.args) == 2 and getattr(step.func, 'id', '') == 'isinstance'
    )


def _use_of(assign: ast.Assign, function: ast.AST | None) -> str:
    """Return what takes the assigned names in a function.

    'counted' if a `range` does, 'guard' if only asserts, raises and ifs that raise read them, else ''.
    """
    names = {part.id for target in assign.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    steps = list(ast.walk(function or assign))
    calls = [step for step in steps if isinstance(step, ast.Call)]
    if any(getattr(call.func, 'id', '') == 'range' and _uses(call, names) for call in calls):
        return 'counted'
    guarded = 0
    for step in steps:
        if isinstance(step, ast.Assert | ast.Raise):
            guarded += _uses(step, names)
        elif isinstance(step, ast.If) and all(isinstance(part, ast.Raise) for part in step.body):
            guarded += _uses(step.test, names)
    total = _uses(ast.Module(steps[0].body if function else [], []), names)
    return 'guard' if 0 < total == guarded else ''


def _uses(node: ast.AST, names: set[str]) -> int:
    """Return how often the names are read in a piece of code."""
    parts = ast.walk(node)
    return sum(
        isinstance(part, ast.Name) and part.id in names and isinstance(part.ctx, ast.Load) for part in parts
    )


@functools.lru_cache(maxsize=256)
def _tree(file: str) -> ast.Module | None:
    try:
        return ast.parse(''.join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return None


def _covers(node: ast.AST, line: int, column: int) -> bool:
    if isinstance(node, ast.comprehension):
        return any(_covers(part, line, column) for part in (node.target, node.iter, *node.ifs))
    if not hasattr(node, 'lineno'):
        return False
    return (node.lineno, node.col_offset) <= (line, column) < (node.end_lineno, node.end_col_offset)


def _taker(node: ast.AST, inner: ast.AST) -> str:
    """Return what `node` does with the value of its child `inner`, as in `Site.waiting`."""
    if isinstance(node, ast.Assert):
        return 'guard'
    if isinstance(node, ast.If) and inner is node.test:
        return 'guard' if all(isinstance(step, ast.Raise) for step in node.body) else 'branch'
    if isinstance(node, ast.IfExp) and inner is node.test:
        return 'branch'
    if isinstance(node, ast.While) and inner is node.test:
        return 'loop'
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'range':
        return 'counted'
    if isinstance(node, ast.For | ast.comprehension) and inner is node.iter:
        return 'loop'
    is_value = isinstance(node, ast.Assign) and inner is node.value
    return 'unpack' if is_value and isinstance(node.targets[0], ast.Tuple) else ''
