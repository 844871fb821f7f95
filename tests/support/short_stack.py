"""A pytest plugin: TorchScript's exporter traces on a stack of its own, without the frames of pytest.

With each operator the tracer records all functions that are being called. With the 60 frames of pytest and of
a test beneath them this was seven eighths of the CPU seconds of a trace. No file has these lines; messages
about a model have those of the model, which are recorded as before.
"""

import contextvars
import functools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest


def keeps_thread(torch) -> bool:
    """Return whether something holds in this thread that another one would not have."""
    modes = torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()
    return bool(modes) or torch.is_inference_mode_enabled() or torch.is_autocast_enabled('cpu')


def on_a_short_stack(trace):
    """Return a function that does the same in a thread, which begins with an empty stack."""
    torch = sys.modules['torch']

    @functools.wraps(trace)
    def run(*args, **options):
        is_watched = (sys.gettrace() and not threading.gettrace()) or sys.getprofile()
        if keeps_thread(torch) or is_watched:
            return trace(*args, **options)
        has_gradients = torch.is_grad_enabled()

        def in_thread():
            with torch.set_grad_enabled(has_gradients):
                return trace(*args, **options)

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(contextvars.copy_context().run, in_thread).result()

    return run


def pytest_collection_finish(session: pytest.Session) -> None:
    if 'torch' in sys.modules:
        jit = sys.modules['torch'].jit
        jit._get_trace_graph = on_a_short_stack(jit._get_trace_graph)
