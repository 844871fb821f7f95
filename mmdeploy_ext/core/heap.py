"""Memory of a process: how much it has, and whether what it frees stays with it, for the next tensor."""

import contextlib
import ctypes
import os
import platform
import threading
import time
from pathlib import Path

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Of `mallopt` in glibc's <malloc.h>."""
KEPT_BYTES, GROWTH_BYTES = 2047 << 20, 64 << 20
"""Free bytes at the end of the heap that are kept at most, and by which it grows at least.

`mallopt` takes an int: it is the largest number of MiB.
"""
LOOK_S = 0.5
"""Seconds between two looks at the size of the process."""
GROWN_BYTES = 1 << 30
"""By how much a large process grows before it gives memory back once more.

Without it a process whose tensors alone are larger than the limit gave its free memory back at every look:
of the CPU seconds of a cascade with masks a quarter was the kernel's.
"""


def resident_bytes(pid: int | str | None = 'self') -> int:
    """Return the bytes in memory of a process, shared pages included; 0 if they cannot be read.

    They cannot outside Linux, nor of a process that has ended.

    `pid` is that of the process, 'self' of this one, None of one that has not started.
    """
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    return 0


def keep_freed_memory(most_bytes: int) -> None:
    """Let glibc keep freed memory, large blocks included, while the process has at most `most_bytes`.

    Free bytes at the end of the heap are kept up to `KEPT_BYTES` alone.
    By default blocks of 32 MB and more are given back at once, and the kernel fills the next ones with zeros
    again: of the proof of a detector with regions that was a fifth of the CPU seconds. A larger process gives
    back what is free between its blocks, too, and does so again whenever it grew by `GROWN_BYTES` since: a
    thread looks at its size. Other C libraries stay as they are.
    """
    if platform.libc_ver()[0] != 'glibc':
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
    libc.mallopt(TOP_PAD, GROWTH_BYTES)
    threading.Thread(target=_give_back_above, args=(libc, most_bytes), daemon=True).start()


def _give_back_above(libc: ctypes.CDLL, most_bytes: int) -> None:
    """Give free memory back when the process is larger and has grown since the last time, until it ends."""
    smallest = -GROWN_BYTES  # since then; the first time needs no growth
    while True:
        time.sleep(LOOK_S)
        size = resident_bytes()
        smallest = min(smallest, size)
        if size > max(most_bytes, smallest + GROWN_BYTES):
            libc.malloc_trim(0)
            smallest = resident_bytes()
