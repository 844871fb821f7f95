"""Memory of one contender, measured in a separate process. Importing this imports neither torch nor mmcv."""

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
"""Number of times that a contender runs in its process."""
HOW = (
    'each contender alone in a fresh process, resident set from /proc/self/status; peak: highest while '
    'loading and running three batches; resident: after them; both less what was there before loading'
)
"""How memory is measured, for the JSON file."""


def is_supported() -> bool:
    """Return whether this system has the figures of memory, in `/proc/self/status`."""
    return Path('/proc/self/status').is_file()


def _status_kb(key: str) -> int:
    for line in Path('/proc/self/status').read_text(encoding='ascii', errors='replace').splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1])
    raise KeyError(key)


def reset_peak() -> int:
    """Reset the peak of this process and return its resident set in kB; the peak if it cannot be reset."""
    try:
        Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
    except OSError:
        return max(_status_kb('VmRSS'), _status_kb('VmHWM'))
    return _status_kb('VmRSS')


def reset_peak_with(model: torch.nn.Module) -> int:
    """Reset the peak, see `reset_peak`; return the resident set less a model's weights and buffers, in kB."""
    return reset_peak() - sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) // 1024


@dataclasses.dataclass(frozen=True)
class Source:
    """Arguments with which a child process loads a model on the CPU."""

    config: str
    checkpoint: str
    cfg_options: dict[str, Any]
    threads: int

    def prepare(self, *modules: str) -> None:
        """Import libraries, families and `modules`, so that their memory does not count."""
        import torch

        from mmdeploy_ext.families.base import load_families

        torch.set_num_threads(self.threads)
        load_families()
        for name in modules:
            importlib.import_module(name)

    def load(self, change: Callable[[Any], Any] | None) -> tuple[int, Any]:
        """Return the kB before the model had weights, and its deployment after `change` of the model."""
        self.prepare()
        from mmdeploy_ext.families.model import build, load_weights, read_config

        deployment = read_config(self.config, self.checkpoint, self.cfg_options)
        build(deployment)
        baseline_kb = reset_peak_with(deployment.model)
        load_weights(deployment)
        if change:
            deployment.model = change(deployment.model)
        return baseline_kb, deployment


def run_graph(engine: str, path: str, threads: int, feeds: Mapping[str, np.ndarray]) -> tuple[int, object]:
    """Run a file `RUNS` times on an engine; return the kB before loading, and the backend."""
    backend = ENGINES[engine].open(path, threads)
    importlib.import_module(ENGINES[engine].package)
    baseline_kb = reset_peak()
    backend.activate()
    for _ in range(RUNS):
        backend.infer(backend.select_inputs(feeds))
    return baseline_kb, backend


def _child(parent: Connection) -> None:
    try:
        compat.apply()  # imports nothing; the received call may import what has to be patched
        baseline_kb, loaded = parent.recv()()
        parent.send(
            dict(
                peak_mb=round((_status_kb('VmHWM') - baseline_kb) / 1024, 1),
                resident_mb=round((_status_kb('VmRSS') - baseline_kb) / 1024, 1),
            )
        )
        del loaded
    except Exception:
        parent.send(traceback.format_exc(limit=3))


def measure(call: Callable[[], tuple[int, object]], name: str) -> dict[str, float]:
    """Load and run a contender in a fresh process: `peak_mb` and `resident_mb`, MiB above before loading."""
    context = multiprocessing.get_context('spawn')
    # sent by a pipe: an argument of the process blocks for ever if the process ends before it has read it
    child, parent = context.Pipe()
    process = context.Process(target=_child, args=(parent,), daemon=True)
    process.start()
    parent.close()
    try:
        child.send(call)
        answer = child.recv()
    except (EOFError, OSError):
        answer = 'the process ended without an answer'
    process.join()
    if isinstance(answer, str):
        raise EngineError(
            f'memory of {name}: {answer.strip().splitlines()[-1]} (exit status {process.exitcode}); '
            f'--no-memory leaves this out'
        )
    return answer
