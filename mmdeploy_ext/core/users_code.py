"""Records which instructions of the user's code run inside a block. Needs no torch.

Single instructions are recorded, not lines: both ways of `x if a else y` are on one.
"""

from __future__ import annotations

import contextlib
import dis
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.model_classes import LIBRARIES
from mmdeploy_ext.core.source_code import DISTRIBUTIONS, is_as_installed, is_in_package, is_installed, is_ours

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType


class RanCode:
    """The user's code that ran inside of `watched` blocks.

    Attributes:
        codes: id of a code object -> the object, and the name of its module.
        instructions: the same id -> offsets of the instructions that ran.
    """

    def __init__(self) -> None:
        self.codes: dict[int, tuple[CodeType, str]] = {}
        self.instructions: dict[int, set[int]] = {}
        self._are_users: dict[int, tuple[CodeType, bool]] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Record what is called inside the block in this thread, not the code of the block itself.

        A debugger sees nothing of it meanwhile.
        """
        before = sys.gettrace()
        sys.settrace(self._on_call)
        try:
            yield
        finally:
            sys.settrace(before)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        entry = self._are_users.get(id(code))  # the code itself would be hashed by its content
        if entry is None:
            module = str(frame.f_globals.get('__name__', ''))
            entry = self._are_users[id(code)] = code, is_users_code(code, module)
            if entry[1]:
                self.codes[id(code)], self.instructions[id(code)] = (code, module), set()
        if not entry[1]:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._on_instruction

    def _on_instruction(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == 'opcode':
            self.instructions[id(frame.f_code)].add(frame.f_lasti)
        return self._on_instruction

    def lines_beside(self, export: RanCode, key: int) -> list[int]:
        """Return the numbers of lines of a function that ran here and not, or not wholly, in `export`.

        Of lines that follow each other the first alone is returned. `key` is the function's id in `codes`.
        """
        code, _ = self.codes[key]
        alone = self.instructions[key] - export.instructions.get(key, set())
        line, lines = 0, []
        starts = dict(dis.findlinestarts(code))
        for instruction in dis.get_instructions(code):
            line = starts.get(instruction.offset) or line
            if instruction.offset in alone and line not in lines:
                lines.append(line)
        return sorted(line for line in lines if line - 1 not in lines)


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Inside the block nothing is recorded, also if a `watched` block is around it."""
    before = sys.gettrace()
    if getattr(before, '__func__', None) is RanCode._on_call:
        sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(before)


def is_users_code(code: CodeType, module: str) -> bool:
    """Return whether code of a module, by its name, is neither Python's, a library's nor `mmdeploy_ext`'s.

    That of a copy of a library of OpenMMLab is the user's where it is not what the library has; so are its
    lambdas, its comprehensions and what is outside of functions and classes, whatever they are. Code without
    a file, such as that of `exec`, is not.
    """
    package, path = module.partition('.')[0], Path(code.co_filename)
    if package in LIBRARIES or package in sys.stdlib_module_names or code.co_filename.startswith('<'):
        return False
    path = path.resolve()
    if is_ours(path) or is_installed(package, path):
        return False
    if package not in DISTRIBUTIONS:
        return not is_in_package(path)
    return not is_as_installed(code, package)


def attributes_read(code: CodeType) -> set[str]:
    """Return the names of attributes that code reads, without the functions in it.

    Python 3.11 calls methods by another instruction, so that their names are left out, but for calls with `*`
    or `**`; from 3.12 on they are among them, but those of `super()` are not.
    """
    return {str(entry.argval) for entry in dis.get_instructions(code) if entry.opname == 'LOAD_ATTR'}


def attributes_written(code: CodeType) -> set[str]:
    """Return the names of attributes that code sets, without the functions in it."""
    return {str(entry.argval) for entry in dis.get_instructions(code) if entry.opname == 'STORE_ATTR'}
