"""Memory of a process: how much it has, and whether it keeps what it frees."""

import contextlib
import ctypes
import os
import platform
from pathlib import Path

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Of `mallopt` in glibc's <malloc.h>."""


def resident_bytes(pid: int | str | None = 'self') -> int:
    """Return the bytes in memory of a process, shared pages included; 0 if they cannot be read.

    They cannot outside Linux, nor of a process that has ended. `pid` None is one that has not started.
    """
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    return 0


def keep_freed_memory() -> None:
    """Let glibc keep up to 2 GB of freed memory, large blocks included, for the next tensors.

    Else the kernel fills each new block with zeros: a fifth of the CPU seconds of a detector at 800x1333.
    """
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, 2047 << 20)
