"""Memory of a process that runs many networks: what it frees stays with it, for the next tensor."""

import ctypes
import platform

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Of `mallopt` in glibc's <malloc.h>."""
KEPT_BYTES, GROWTH_BYTES = 512 << 20, 64 << 20
"""Free bytes at the end of the heap that are kept at most, and by which it grows at least."""


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, large blocks included; other C libraries stay as they are.

    By default blocks of 32 MB and more are given back at once, and the kernel fills the next ones with zeros
    again: of the proof of a detector with regions that was a fifth of the CPU seconds.
    """
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(TOP_PAD, GROWTH_BYTES)
