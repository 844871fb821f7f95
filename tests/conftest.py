"""What all tests share. Fixtures of one family live in that family's folder."""

import gc
import os
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))

from mmdeploy_ext import compat  # noqa: E402
from mmdeploy_ext.core import cli  # noqa: E402

pytest_plugins = [
    'compiled_once',
    'cpu_seconds',
    'exported_once',
    'heap',
    'marking',
    'one_run',
    'one_thread',
    'opened_once',
    'report_messages',
    'resume',
    'short_stack',
    'table_rows',
]
WORKER_BYTES = 4 << 30
COLLECT_AFTER = 10_000, 20, 50
"""For garbage: with Python's own numbers the search takes a 22nd of the CPU seconds."""
gc.disable()  # until all tests are collected: nothing that the imports make goes
cli.wait_passively()
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported: as many workers as cores
compat.apply()


def pytest_collection_finish() -> None:
    """Keep what the imports made out of every later search for garbage: a twentieth of the CPU seconds.

    Their own garbage stays, too: to search for those 20 MB takes 0.7 CPU seconds of each worker.
    """
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one worker per core and one for cores whose worker waits for a process, as memory allows.

    Matrices of full size need more memory each, and start few processes: they get no other one.
    """
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    spare = int(config.option.markexpr != 'matrix')
    return max(1, min(len(os.sched_getaffinity(0)) + spare, memory // WORKER_BYTES))
