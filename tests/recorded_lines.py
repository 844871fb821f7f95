"""A pytest plugin: a trace does not record from which lines of Python each operator is called.

The tracer of TorchScript writes the whole stack down with every operator. With the frames of pytest beneath
it that was seven eighths of the CPU seconds of a trace, a twelfth of those of the suite. No file has these
lines: `mm2onnx lint` reads them, and messages of the exporter.

torch has no switch for it, but a function that sets what is called for each operator. What was set before is
found where the function that calls it jumps to. Where that has other instructions than on x86-64, all lines
are recorded.
"""

import ctypes
import re
import sys
from pathlib import Path

import pytest

READ_LINES = 'tests/mmdeploy_ext/lint', 'tests/tools/test_lint.py'
"""Tests for which lines are recorded."""
CALL = '_ZN5torch3jit6tracer20recordSourceLocationEPNS0_4NodeE'
SET = '_ZN5torch3jit6tracer23setRecordSourceLocationEPFvPNS0_4NodeEE'
JUMP = re.compile(rb'\x48\x8b\x05(.{4})\xff\xe0', re.DOTALL)
"""Load the address that is stored so many bytes behind this instruction, and jump to it."""
Recorder = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
"""Called with the address of the node of an operator."""


class Lines:
    """Switches the recording of lines.

    Attributes:
        set: function of torch that takes a recorder; None where it cannot be switched.
        recorders: whether lines are recorded -> a recorder that does it.
        recorded: whether the one that is set records them.
    """

    def __init__(self) -> None:
        self.set, self.recorders, self.recorded = None, {}, True
        try:
            library = ctypes.CDLL(str(Path(sys.modules['torch'].__file__).parent / 'lib/libtorch_cpu.so'))
            call, change = library[CALL], library[SET]
        except (OSError, AttributeError):
            return
        start = ctypes.cast(call, ctypes.c_void_p).value
        if jump := JUMP.match(ctypes.string_at(start, 9)):
            stored = start + 7 + int.from_bytes(jump[1], 'little', signed=True)
            before = Recorder(ctypes.c_void_p.from_address(stored).value)
            self.set, self.recorders = change, {True: before, False: Recorder(lambda node: None)}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        recorded = nodeid.startswith(READ_LINES)
        if self.set and recorded != self.recorded:
            self.set(self.recorders[recorded])
            self.recorded = recorded


def pytest_collection_finish(session: pytest.Session) -> None:
    if 'torch' in sys.modules:
        session.config.pluginmanager.register(Lines())
