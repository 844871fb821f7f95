"""A pytest plugin: memory that tests give back stays with the process, for the next test.

The C library returns the top of its heap at once, and large blocks in any case: a tenth of the CPU seconds of
the tests was the kernel's, most of it filling pages with zeros again.
"""

import ctypes
import gc
import platform
from collections.abc import Iterator

import pytest

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of `mallopt` in glibc's <malloc.h>."""


def pytest_configure() -> None:
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(TRIM_THRESHOLD, 512 << 20)
        libc.mallopt(MMAP_THRESHOLD, 32 << 20)  # the most that it takes


@pytest.fixture(scope='module')
def without_garbage() -> Iterator[None]:
    """Search for no garbage: for tests that read the syntax trees of all files, millions of objects.

    The searches take two thirds of the time of reading them.
    """
    gc.disable()
    yield
    gc.enable()
