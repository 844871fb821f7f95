"""A pytest plugin: ONNX Runtime computes with one thread in a test that asks for no other number.

Its threads otherwise spin while they wait for work, each on a core that another process of the tests needs:
a fifth of the CPU seconds of the proofs. PyTorch has OMP_NUM_THREADS.
"""

import functools

import onnxruntime
import pytest


def one_thread(start):
    """Return `InferenceSession.__init__` with options of one thread where they leave the number open."""

    @functools.wraps(start)
    def init(self, path_or_bytes, sess_options=None, *args, **kwargs):
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.intra_op_num_threads or 1
        start(self, path_or_bytes, options, *args, **kwargs)

    return init


def pytest_configure() -> None:
    session = onnxruntime.InferenceSession
    session.__init__ = one_thread(session.__init__)


@pytest.fixture
def threads_by_default(monkeypatch):
    """Leave the number of threads to ONNX Runtime, as for a user: for tests of that."""
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(session, '__init__', session.__init__.__wrapped__)
