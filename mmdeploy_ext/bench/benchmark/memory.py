"""Memory of one contender, measured in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from mmdeploy_ext.base.errors import EngineError
from mmdeploy_ext.upstream import compat

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

RUNS = 3
"""Runs of a contender in its process."""
STATUS = Path('/proc/self/status')
HOW = (
    'each contender alone in a fresh process, resident set from /proc/self/status; peak: highest while '
    'opening and running three samples; resident: after them; both without the memory used before, and '
    "without PyTorch's weights"
)


def is_supported() -> bool:
    return STATUS.is_file()


def _status_kb(key: str) -> int:
    for line in STATUS.read_text(encoding='ascii', errors='replace').splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1])
    raise KeyError(key)


def reset_peak() -> int:
    """Reset the peak of this process and return its resident set in kB; the peak if it cannot be reset."""
    with contextlib.suppress(OSError, AttributeError):  # what was freed would hide what is opened next
        ctypes.CDLL('libc.so.6').malloc_trim(0)
    try:
        Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
    except OSError:
        return max(_status_kb('VmRSS'), _status_kb('VmHWM'))
    return _status_kb('VmRSS')


def used_since(baseline_kb: int) -> dict[str, float]:
    """`peak_mb` and `resident_mb`, MiB above a result of `reset_peak`."""
    return dict(
        peak_mb=round((_status_kb('VmHWM') - baseline_kb) / 1024, 1),
        resident_mb=round((_status_kb('VmRSS') - baseline_kb) / 1024, 1),
    )


def _child(parent: Connection) -> None:
    try:
        compat.apply()  # imports nothing; the received call may import what has to be patched
        parent.send(parent.recv()())
    except Exception:
        parent.send(traceback.format_exc(limit=3))


def measure(call: Callable[[], dict[str, float]], name: str) -> dict[str, float]:
    """Run `call`, which opens and runs the contender `name`, in a fresh process; return its result."""
    context = multiprocessing.get_context('spawn')
    # sent by a pipe: an argument of the process blocks for ever if the process ends before it has read it
    child, parent = context.Pipe()
    process = context.Process(target=_child, args=(parent,), daemon=True)
    process.start()
    parent.close()
    try:
        child.send(call)
        answer = child.recv()
    except (EOFError, OSError):
        answer = 'the process ended without an answer'
    process.join()
    if isinstance(answer, str):
        raise EngineError(
            f'memory of {name}: {answer.strip().splitlines()[-1]} (exit status {process.exitcode}); use '
            '--no-memory to skip it'
        )
    return answer
