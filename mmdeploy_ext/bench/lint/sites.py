"""Lines of code outside of torch, and how a line uses the value of a call."""

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

from mmdeploy_ext.base.source_code import PACKAGE_FOLDERS, is_in_package, is_typed

LINTER = str(Path(__file__).parent)
TORCH = str(Path(torch.__file__).parent) + os.sep
# files of torch that pass on a call of the user's; a call from another file of torch is torch's own
THIN = tuple(
    os.path.join(TORCH, *part.split('/'))
    for part in (
        '_tensor.py', 'functional.py', 'overrides.py', 'nn/functional.py', '_jit_internal.py', '_ops.py',
        'utils/_contextlib.py', 'autograd/function.py',
    )
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Site:
    """A line of code.

    Attributes:
        file: relative to the working directory, or to the folder of installed packages.
        code: text without indentation; '' if the file cannot be read.
        library: the file is in an installed package.
        via: for a line in a library, the innermost line outside of libraries that led there.
    """

    file: str
    line: int
    function: str
    code: str
    library: bool = False
    via: Site | None = dataclasses.field(default=None, compare=False)

    @property
    def text(self) -> str:
        return f'{self.file}:{self.line}'

    def __str__(self) -> str:
        return self.text


def calling_frame() -> FrameType | None:
    """Innermost frame outside of torch and the linter; None if torch itself made the call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (_is_linter(_file(frame)) or _file(frame) in THIN):
        frame = frame.f_back
    return None if frame is None or _file(frame).startswith(TORCH) else frame


def caller() -> Site | None:
    frame = calling_frame()
    return None if frame is None else site_of(frame)


def site_of(frame: FrameType) -> Site:
    """Line that a frame runs, with `via`."""
    site, outer = site_at(_file(frame), frame.f_lineno, frame.f_code.co_name), frame.f_back
    if not site.library:
        return site
    while outer is not None and is_in_package(Path(_file(outer))) and not _is_linter(_file(outer)):
        outer = outer.f_back
    if outer is None or _is_linter(_file(outer)):
        return site
    return dataclasses.replace(site, via=site_at(_file(outer), outer.f_lineno, outer.f_code.co_name))


def site_of_trace(frames: list[tuple[str, str, str]]) -> Site | None:
    """First of (file, line, function), innermost first, outside of torch and the linter."""
    for file, line, function in frames:
        if not file.startswith(TORCH) and not _is_linter(file):
            return site_at(file, int(line), function)
    return None


@functools.lru_cache(maxsize=4096)
def site_at(file: str, line: int, function: str = '') -> Site:
    """Line of a file, without `via`."""
    folder = next((folder for folder in PACKAGE_FOLDERS if folder in file), '')
    shown = file.split(f'{folder}{os.sep}')[-1] if folder else os.path.relpath(file)
    shown = os.path.basename(file) if shown.startswith('..') else shown
    return Site(shown, line, function, linecache.getline(file, line).strip(), is_in_package(Path(file)))


def use_at(frame: FrameType) -> str:
    """How the running line uses the value of its call.

    'branch': condition of an `if`. 'loop': condition of a `while`, iterable of a `for` or a `range`. 'guard':
    an assert, or an `if` that only raises. 'unpack': assigned to a fixed number of names.
    """
    positions = list(frame.f_code.co_positions())
    line, _, column, _ = positions[frame.f_lasti // 2]
    tree = _tree(_file(frame))
    if tree is None or line is None or column is None:
        return ''
    use, node = '', tree
    while node is not None:
        inner = next((child for child in ast.iter_child_nodes(node) if _covers(child, line, column)), None)
        if isinstance(inner, ast.stmt | ast.Lambda):
            use = ''
        if inner is not None and use not in ('guard', 'loop'):
            use = _use_of(node, inner) or use
        node = inner
    return use


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename


def _is_linter(file: str) -> bool:
    return os.path.dirname(file) == LINTER or (file.startswith('<') and not is_typed(file))


@functools.lru_cache(maxsize=256)
def _tree(file: str) -> ast.Module | None:
    try:
        return ast.parse(''.join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return None


def _covers(node: ast.AST, line: int, column: int) -> bool:
    if not hasattr(node, 'lineno'):  # a comprehension, an item of a with
        return any(_covers(part, line, column) for part in ast.iter_child_nodes(node))
    return (node.lineno, node.col_offset) <= (line, column) < (node.end_lineno, node.end_col_offset)


def _use_of(node: ast.AST, inner: ast.AST) -> str:
    if isinstance(inner, ast.Assert):
        return 'guard'
    if isinstance(node, ast.If) and inner is node.test:
        return 'guard' if all(isinstance(step, ast.Raise) for step in node.body) else 'branch'
    if isinstance(node, ast.IfExp) and inner is node.test:
        return 'branch'
    if isinstance(node, ast.While) and inner is node.test:
        return 'loop'
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'range':
        return 'loop'
    if isinstance(node, ast.For | ast.comprehension) and inner is node.iter:
        return 'loop'
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple | ast.List):
        starred = any(isinstance(part, ast.Starred) for part in ast.walk(node.targets[0]))
        return '' if starred or inner not in (node.value, node.targets[0]) else 'unpack'
    return ''
