"""What all tests share. Fixtures of one family live in that family's folder."""

import contextvars
import functools
import gc
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime
import pytest

REPO = Path(__file__).resolve().parent
if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))

from mmdeploy_ext.base import cli, heap  # noqa: E402
from mmdeploy_ext.upstream import compat  # noqa: E402

WORKER_BYTES = 4 << 30
cli.wait_passively()
heap.keep_freed_memory()
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported: as many workers as cores
compat.apply()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one worker per core, as memory allows: each collects all tests and makes toys of its own."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return max(1, min(len(os.sched_getaffinity(0)), memory // WORKER_BYTES))


def pytest_addoption(parser) -> None:
    parser.addoption('--disturb', type=int, metavar='SEED', help='toys off by less than a float32 unit')


def pytest_configure(config) -> None:
    """ONNX Runtime computes with one thread unless a test asks for more, as PyTorch by OMP_NUM_THREADS."""
    if config.option.disturb is not None:
        from disturbed import disturb_toys

        disturb_toys(config.option.disturb)
    session = onnxruntime.InferenceSession
    session.__init__ = one_thread(session.__init__)
    gc.set_threshold(10_000)  # models and graphs are many objects, and few of them garbage


def pytest_collection_finish() -> None:
    export = sys.modules.get('mmdeploy_ext.exporting.export')
    if export:
        export.run = on_a_short_stack(export.run)


def on_a_short_stack(run):
    """Run exports in a thread: TorchScript's tracer copies the stack of Python for each operator."""

    @functools.wraps(run)
    def call(*args, **kwargs):
        import torch

        if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
            return run(*args, **kwargs)  # modes are of a thread
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(contextvars.copy_context().run, run, *args, **kwargs).result()

    return call


def one_thread(start):
    @functools.wraps(start)
    def init(self, path_or_bytes, sess_options=None, *args, **kwargs):
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.intra_op_num_threads or 1
        start(self, path_or_bytes, options, *args, **kwargs)

    return init


@pytest.fixture
def threads_by_default(monkeypatch):
    """Leave the number of threads to ONNX Runtime, as for a user."""
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(session, '__init__', session.__init__.__wrapped__)


@pytest.fixture
def bench(tmp_path, capfd, monkeypatch):
    """Good command lines of the tools in a folder of their own, see `refusals`."""
    import refusals

    monkeypatch.chdir(tmp_path)
    return refusals.Bench(tmp_path, capfd)
