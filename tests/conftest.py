"""What all tests share. Fixtures of one family live in that family's folder."""

import os
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))

from mmdeploy_ext import compat  # noqa: E402
from mmdeploy_ext.core import cli  # noqa: E402

pytest_plugins = ['one_thread', 'short_stack']
WORKER_BYTES = 4 << 30
cli.wait_passively()
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported: as many workers as cores
compat.apply()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one worker per core, as memory allows: each collects all tests and makes toys of its own."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return max(1, min(len(os.sched_getaffinity(0)), memory // WORKER_BYTES))


@pytest.fixture
def bench(tmp_path, capfd, monkeypatch):
    """Good command lines of the tools in a folder of their own, see `refusals`."""
    import refusals

    monkeypatch.chdir(tmp_path)
    return refusals.Bench(tmp_path, capfd)
