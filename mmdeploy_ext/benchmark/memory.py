"""Memory of one contender, measured in a process of its own. Importing this imports neither torch nor mmcv.

The operating system's figures of the process (`/proc/self/status`, Linux) before loading are taken away: what
Python and the libraries take when they are imported does not count, weights, engine and activations do.
"""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext import compat
from mmdeploy_ext.core.errors import EngineError
from mmdeploy_ext.engines.registry import ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection

    import numpy as np
    import torch

RUNS = 3
HOW = (
    'each contender alone in a fresh process, resident set from /proc/self/status; peak: highest while '
    'loading and running three batches; resident: after them; both less what was there before loading'
)


def is_supported() -> bool:
    """Return whether this system has the figures."""
    return Path('/proc/self/status').is_file()


def _status_kb(key: str) -> int:
    for line in Path('/proc/self/status').read_text(encoding='ascii', errors='replace').splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1])
    raise KeyError(key)


def start() -> int:
    """Forget the peak so far and return the resident set in kB."""
    try:
        Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
    except OSError:
        return max(_status_kb('VmRSS'), _status_kb('VmHWM'))
    return _status_kb('VmRSS')


def start_with(model: torch.nn.Module) -> int:
    """Return what `start` would have returned before a model had weights."""
    return start() - sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) // 1024


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a child process has a model from; threads are of PyTorch."""

    config: str
    checkpoint: str
    cfg_options: dict[str, Any]
    threads: int

    def prepare(self, *modules: str) -> None:
        """Import what does not count: the stack, the families, and these modules."""
        import torch

        from mmdeploy_ext.families.base import load_families

        torch.set_num_threads(self.threads)
        load_families()
        for name in modules:
            importlib.import_module(name)

    def load(self, change: Callable[[Any], Any] | None) -> tuple[int, Any]:
        """Load the model and perhaps change it; return the kB before it had weights, and its deployment."""
        self.prepare()
        from mmdeploy_ext.exporting import deployment

        before = []

        def note(_cfg: object, _family: object, model: torch.nn.Module) -> None:
            before.append(start_with(model))

        loaded = deployment.load(self.config, self.checkpoint, self.cfg_options, before_weights=note)
        loaded.model = change(loaded.model) if change else loaded.model
        return before[0], loaded


def run_graph(engine: str, path: str, threads: int, feeds: Mapping[str, np.ndarray]) -> tuple[int, object]:
    """Run a file on an engine of `registry.ENGINES`, without torch; feeds may be more than it takes."""
    backend = ENGINES[engine].open(path, threads)
    importlib.import_module(ENGINES[engine].package)
    before = start()
    backend.activate()
    for _ in range(RUNS):
        backend.infer(backend.known(feeds))
    return before, backend


def _child(parent: Connection) -> None:
    """Run what the parent sends, and answer with the figures or with what went wrong."""
    try:
        compat.apply()  # imports nothing; what is received may import what has to be patched
        before, kept = parent.recv()()
        parent.send(
            dict(
                peak_mb=round((_status_kb('VmHWM') - before) / 1024, 1),
                resident_mb=round((_status_kb('VmRSS') - before) / 1024, 1),
            )
        )
        del kept
    except Exception:
        parent.send(traceback.format_exc(limit=3))


def measure(call: Callable[[], tuple[int, object]], what: str) -> dict[str, float]:
    """Load and run a contender in a fresh process: `peak_mb` and `resident_mb`, MiB more than before loading.

    Args:
        call: loads and runs it; returns the kB before it was loaded (`start`), and what has to stay alive.
        what: is measured, for the message.

    Raises:
        EngineError: the process failed or was killed.
    """
    context = multiprocessing.get_context('spawn')
    # what is sent as an argument of a process blocks for ever where the process ends before it has read it
    child, other_end = context.Pipe()
    process = context.Process(target=_child, args=(other_end,), daemon=True)
    process.start()
    other_end.close()
    try:
        child.send(call)
        result = child.recv()
    except (EOFError, OSError):
        result = 'the process ended without an answer'
    process.join()
    if isinstance(result, str):
        raise EngineError(
            f'memory of {what}: {result.strip().splitlines()[-1]} (exit status {process.exitcode}); '
            f'--no-memory leaves this out'
        )
    return result
