"""Lines of code outside of torch, and whether a branch, a loop or a guard there uses the value of a call."""

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

from mmdeploy_ext.core.source_code import PACKAGE_FOLDERS, is_in_package, is_typed

MACHINERY = str(Path(__file__).parent)
"""Folder of the linter, whose frames, without those of its subfolders, are passed over."""
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
        file: as shown: relative to the working directory; from the package on in libraries; else the name
            alone.
        line: its number, from 1 on.
        function: name of the function that it is in; '' if it is not known.
        code: its text without indentation; '' if the file cannot be read.
        library: whether the file is in a folder site-packages or dist-packages, where packages are installed.
        via: for a line in a library, the innermost line outside of libraries that led there; None if there
            is none, or if no function on the way is called `forward`.
        waiting: what uses the value of the call: 'branch' (the condition of an `if`, or what a `match`
            compares), 'guard' (an assert, an `if` that only raises, or names that nothing else reads), 'loop'
            (the condition of a `while`, or what a `for` goes through), 'counted' (a `range`, directly or by a
            name), 'unpack' (an assignment to a fixed number of names); 'handled' if it is none of these and
            the function tests for torch.Tensor by `isinstance`; else ''.
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
    """Return the innermost line of the call stack outside of torch and of the linter.

    Code without a file is passed over; that of the user (`source_code.is_typed`) is not if torch called it,
    such as a `forward`, unless `through_torch`. If torch made the call for itself, the result is None; with
    `through_torch` it is the line outside of torch that led there. It is None, too, if there is no such line.
    """
    frame: FrameType | None = sys._getframe(1)
    without_file = None
    while frame is not None and (_is_machinery(frame) or _file(frame) in THIN):
        if without_file is None and is_typed(_file(frame)):
            without_file = frame
        frame = frame.f_back
    if frame is not None and not through_torch and _file(frame).startswith(TORCH + os.sep):
        return None if without_file is None else _site_of(without_file)
    while frame is not None and (_file(frame).startswith(TORCH + os.sep) or _is_machinery(frame)):
        frame = frame.f_back
    return None if frame is None else _site_of(frame)


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename


def _is_machinery(frame: FrameType) -> bool:
    file = _file(frame)
    return os.path.dirname(file) == MACHINERY or file.startswith('<')


def _is_library(file: str) -> bool:
    return is_in_package(Path(file))


def _site_of(frame: FrameType) -> Site:
    file, via = _file(frame), None
    if _is_library(file):
        functions, outer = {frame.f_code.co_name}, frame.f_back
        while outer is not None and _is_library(_file(outer)) and not _is_machinery(outer):
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

    `function` is the name of the function that the line is in; '' if it is not known. A file that cannot be
    read, or has no such line, gives a site without code.
    """
    # without what only this machine has
    folder = next((folder for folder in PACKAGE_FOLDERS if folder in file), '')
    shown = file.split(f'{folder}{os.sep}')[-1] if folder else os.path.relpath(file)
    return Site(
        os.path.basename(file) if shown.startswith('..') else shown,
        line,
        function,
        linecache.getline(file, line).strip(),
        _is_library(file),
    )


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
    """Return whether a function tests by `isinstance` for torch.Tensor, and not for numbers with it.

    Then it has code of its own for sizes in a trace, where they are tensors.
    """
    calls = [step for step in ast.walk(function) if isinstance(step, ast.Call) and len(step.args) == 2]
    for call in calls:
        types = {getattr(part, 'attr', getattr(part, 'id', '')) for part in ast.walk(call.args[1])}
        is_test = getattr(call.func, 'id', '') == 'isinstance'
        if is_test and 'Tensor' in types and types.isdisjoint({'int', 'float'}):
            return True
    return False


def _use_of(assign: ast.Assign, function: ast.AST | None) -> str:
    """Return what uses the assigned names and attributes in a function.

    'counted' if a `range` does, 'guard' if they are names that only asserts, raises and ifs that raise read,
    else ''.
    """
    targets = [part for target in assign.targets for part in ast.walk(target)]
    names = {ast.unparse(part) for part in targets if isinstance(getattr(part, 'ctx', None), ast.Store)}
    steps = list(ast.walk(function or assign))
    calls = [step for step in steps if isinstance(step, ast.Call)]
    if any(getattr(call.func, 'id', '') == 'range' and _uses(call, names) for call in calls):
        return 'counted'
    if any(isinstance(part, ast.Attribute | ast.Subscript) for part in targets):
        return ''  # other functions may read it
    guarded = 0
    for step in steps:
        if isinstance(step, ast.Assert | ast.Raise):
            guarded += _uses(step, names)
        elif isinstance(step, ast.If) and all(isinstance(part, ast.Raise) for part in step.body):
            guarded += _uses(step.test, names)
    total = _uses(ast.Module(steps[0].body if function else [], []), names)
    return 'guard' if 0 < total == guarded else ''


def _uses(node: ast.AST, names: set[str]) -> int:
    """Return how often the names and attributes are read in a piece of code."""
    return sum(
        isinstance(part, ast.Name | ast.Attribute)
        and isinstance(part.ctx, ast.Load)
        and ast.unparse(part) in names
        for part in ast.walk(node)
    )


@functools.lru_cache(maxsize=256)
def _tree(file: str) -> ast.Module | None:
    try:
        return ast.parse(''.join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return None


def _covers(node: ast.AST, line: int, column: int) -> bool:
    if not hasattr(node, 'lineno'):  # a comprehension, the case of a match, an item of a with
        return any(_covers(part, line, column) for part in ast.iter_child_nodes(node))
    return (node.lineno, node.col_offset) <= (line, column) < (node.end_lineno, node.end_col_offset)


def _taker(node: ast.AST, inner: ast.AST) -> str:
    """Return what `node` does with the value of its child `inner`, as in `Site.waiting`."""
    if isinstance(node, ast.Assert):
        return 'guard'
    if isinstance(node, ast.If) and inner is node.test:
        return 'guard' if all(isinstance(step, ast.Raise) for step in node.body) else 'branch'
    if isinstance(node, ast.IfExp) and inner is node.test:
        return 'branch'
    if isinstance(node, ast.Match | ast.match_case) and isinstance(inner, ast.expr | ast.pattern):
        return 'branch'
    if isinstance(node, ast.While) and inner is node.test:
        return 'loop'
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'range':
        return 'counted'
    if isinstance(node, ast.For | ast.comprehension) and inner is node.iter:
        return 'loop'
    if not isinstance(node, ast.Assign) or inner not in (node.value, node.targets[0]):
        return ''
    target = node.targets[0]  # the place of the instruction that unpacks; calls in the value are there
    has_rest = any(isinstance(part, ast.Starred) for part in ast.walk(target))
    return 'unpack' if isinstance(target, ast.Tuple | ast.List) and not has_rest else ''
