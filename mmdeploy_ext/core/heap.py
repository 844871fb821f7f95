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
KEPT_BYTES, GROWTH_BYTES = 512 << 20, 64 << 20
"""Free bytes at the end of the heap that are kept at most, and by which it grows at least."""
LOOK_S = 0.5
"""Seconds between two looks at the size of the process."""


def resident_bytes(pid: int | str | None = 'self') -> int:
    """Return the memory of a process including shared pages; 0 if it cannot be read, as outside Linux.

    `pid` is that of the process, 'self' of this one, None of one that has not started.
    """
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    return 0


def keep_freed_memory(most_bytes: int) -> None:
    """Let glibc keep freed memory, large blocks included, while the process has at most `most_bytes`.

    By default blocks of 32 MB and more are given back at once, and the kernel fills the next ones with zeros
    again: of the proof of a detector with regions that was a fifth of the CPU seconds. A larger process gives
    back what is free between its blocks, too: a thread looks at its size. Other C libraries stay as they are.
    """
    if platform.libc_ver()[0] != 'glibc':
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
    libc.mallopt(TOP_PAD, GROWTH_BYTES)
    threading.Thread(target=_give_back_above, args=(libc, most_bytes), daemon=True).start()


def _give_back_above(libc: ctypes.CDLL, most_bytes: int) -> None:
    """Give free memory back as often as the process is larger, until it ends."""
    while True:
        time.sleep(LOOK_S)
        if resident_bytes() > most_bytes:
            libc.malloc_trim(0)
