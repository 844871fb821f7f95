"""Sizes that code written in C takes out of marked numbers, which it reads without calling their methods.

`'%d' % h`, `table[h]`, `math.log(h)` and `str(x.shape)` are such. Instructions of the user's code are looked
at before they run: what they get is told from the code's syntax tree and the variables.
"""

from __future__ import annotations

import ast
import contextlib
import dis
import functools
import linecache
import sys
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.core.users_code import is_users_code
from mmdeploy_ext.lint.nested import leaves
from mmdeploy_ext.lint.record import origins_of
from mmdeploy_ext.lint.sites import caller

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import CodeType, FrameType

    from mmdeploy_ext.lint.record import Origins, Recorder

UNKNOWN = object()
"""Value of an expression that cannot be told without running it."""
TEXTS = ('str', 'repr', 'format', 'ascii', 'hash')
"""Built-in functions that make a text or a number of a shape in C."""
READERS = ('bytes', 'bytearray', 'chr', 'bin', 'hex', 'oct')
"""Built-in functions that read a number in C."""
PASSING = (
    'collections', 'contextlib', 'copy', 'dataclasses', 'enum', 'functools', 'logging', 'typing', 'warnings',
)  # fmt: skip
"""Modules of Python whose functions and classes keep or print numbers as they are."""


@contextlib.contextmanager
def sizes_in_c_are_recorded(recorder: Recorder) -> Iterator[None]:
    """Record sizes that the user's code hands to code in C; a debugger sees nothing of it meanwhile.

    Not recorded is what only a guard reads, see `Site.waiting`, unless its exception is caught.

    It sets `sys.settrace`, whose events are those of Python 3.11 and later, and restores it on exit.
    """
    before = sys.gettrace()
    steps_of: dict[int, tuple[CodeType, dict[int, ast.AST]]] = {}  # a code would be hashed by its content

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        entry = steps_of.get(id(code))
        if entry is None:
            entry = steps_of[id(code)] = code, _steps_of(code, str(frame.f_globals.get('__name__', '')))
        if not entry[1]:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return on_instruction

    def on_instruction(frame: FrameType, event: str, argument: Any) -> Any:
        node = steps_of[id(frame.f_code)][1].get(frame.f_lasti) if event == 'opcode' else None
        origins = frozenset() if node is None else _Expressions(frame).sizes_taken_in_c(node)
        site = caller() if origins else None
        if site is not None and (site.waiting != 'guard' or site.caught):
            recorder.add('size-to-python', 'a size is read by code in C', site, origins)
        return on_instruction

    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(before)


def _steps_of(code: CodeType, module: str) -> dict[int, ast.AST]:
    """Return offset of an instruction of the user's code -> the expression that it computes, see `_nodes`."""
    if code.co_name == '<module>' or not is_users_code(code, module):
        return {}
    nodes = _nodes(code.co_filename)
    # of the instructions of an expression the last one counts
    offsets = {step.positions: step.offset for step in dis.get_instructions(code)}
    return {offset: nodes[position] for position, offset in offsets.items() if position in nodes}


@functools.lru_cache(maxsize=256)
def _nodes(file: str) -> dict[tuple[int | None, ...], ast.AST]:
    """Return (line, last line, column, last column) -> expression of a file, if it may read a size."""
    try:
        tree = ast.parse(''.join(linecache.getlines(file)))
    except SyntaxError:
        return {}
    kinds = ast.Call | ast.BinOp | ast.Compare | ast.Subscript | ast.JoinedStr
    return {
        (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset): node
        for node in ast.walk(tree)
        if isinstance(node, kinds) and not isinstance(getattr(node, 'ctx', None), ast.Store | ast.Del)
    }


class _Expressions:
    """Expressions of a running function, whose values are told without running code of the user's."""

    def __init__(self, frame: FrameType) -> None:
        self._frame = frame
        self._locals: dict[str, Any] | None = None

    def sizes_taken_in_c(self, node: ast.AST) -> Origins:
        """Return the origins of the sizes that an expression, without those in it, hands to code in C."""
        if isinstance(node, ast.Call):
            return self._of_call(node)
        if isinstance(node, ast.JoinedStr):
            return self._of_shapes(part.value for part in node.values if isinstance(part, ast.FormattedValue))
        if isinstance(node, ast.Subscript):
            is_sequence = isinstance(self.value(node.value), list | tuple | str | bytes | range)
            return self._origins(node.slice) if is_sequence else frozenset()
        if isinstance(node, ast.BinOp):
            text = self.value(node.left)
            if isinstance(node.op, ast.Mod) and isinstance(text, str | bytes):
                return self._origins(node.right)
            sides = [node.left, node.right]
        else:
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        is_of_numpy = any(isinstance(self.value(side), np.generic | np.ndarray) for side in sides)
        return self._of_all(sides) if is_of_numpy else frozenset()

    def _of_call(self, node: ast.Call) -> Origins:
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        function = self.value(node.func)
        if function is map and arguments:
            function, arguments = self.value(arguments[0]), arguments[1:]
        if isinstance(node.func, ast.Attribute):
            base = self.value(node.func.value)
            if isinstance(base, torch.Size) and node.func.attr == 'numel':
                return origins_of(*base)
            if isinstance(base, str) and node.func.attr == 'format':
                return self._of_shapes(arguments)
        name, module = getattr(function, '__name__', ''), str(getattr(function, '__module__', ''))
        if module == 'builtins':
            if name in READERS:
                return self._of_all(arguments)
            return self._of_shapes(arguments) if name in TEXTS else frozenset()
        kinds = BuiltinFunctionType | FunctionType | MethodDescriptorType | type
        package = module.removeprefix('_').partition('.')[0]  # '_operator' has the functions of `operator`
        is_of_python = not sys.stdlib_module_names.isdisjoint({package, module.partition('.')[0]})
        hands_on = isinstance(function, kinds) and is_of_python and package not in PASSING
        return self._of_all(arguments) if hands_on else frozenset()

    def _of_all(self, nodes: Iterable[ast.AST]) -> Origins:
        return frozenset().union(*map(self._origins, nodes))

    def _of_shapes(self, nodes: Iterable[ast.AST]) -> Origins:
        """Return the origins of the shapes among values, which make their texts in C; others have none."""
        shapes = []
        for node in nodes:
            value = self.value(node)
            values = value if type(value) in (list, tuple) else [value]
            shapes += [shape for shape in values if isinstance(shape, torch.Size)]
        return origins_of(*leaves(shapes))

    def _origins(self, node: ast.AST) -> Origins:
        """Return the origins of the sizes in the value of an expression, or in its parts if it is unknown."""
        value = self.value(node)
        if value is not UNKNOWN:
            return origins_of(*leaves(value))
        return self._of_all(ast.iter_child_nodes(node))

    def value(self, node: ast.AST) -> Any:
        """Return the value of an expression; `UNKNOWN` if code of the user's or of a library would run."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._variable(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self.value(node.operand)
            return -value if isinstance(value, int | float) else UNKNOWN
        if isinstance(node, ast.Tuple | ast.List):
            values = [self.value(part) for part in node.elts]
            return UNKNOWN if any(value is UNKNOWN for value in values) else tuple(values)
        if isinstance(node, ast.Attribute):
            return self._attribute(self.value(node.value), node.attr)
        if isinstance(node, ast.Subscript):
            return self._item(self.value(node.value), self._index(node.slice))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'size':
            shape = self._attribute(self.value(node.func.value), 'shape')
            return shape if not node.args else self._item(shape, self.value(node.args[0]))
        return UNKNOWN

    def _variable(self, name: str) -> Any:
        if self._locals is None:
            self._locals = self._frame.f_locals
        for scope in (self._locals, self._frame.f_globals, self._frame.f_builtins):
            if name in scope:
                return scope[name]
        return UNKNOWN

    @staticmethod
    def _attribute(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor) and name in ('shape', 'ndim'):
            return getattr(value, name)
        fields = getattr(value, '__dict__', None) if value is not UNKNOWN else None
        return fields.get(name, UNKNOWN) if isinstance(fields, dict) else UNKNOWN

    def _index(self, node: ast.AST) -> Any:
        if not isinstance(node, ast.Slice):
            return self.value(node)
        ends = [None if end is None else self.value(end) for end in (node.lower, node.upper, node.step)]
        return UNKNOWN if any(end is UNKNOWN for end in ends) else slice(*ends)

    @staticmethod
    def _item(value: Any, index: Any) -> Any:
        if not isinstance(value, tuple | list) or not isinstance(index, int | slice):
            return UNKNOWN
        try:
            item = value[index]
        except (IndexError, ValueError):
            return UNKNOWN
        return item
