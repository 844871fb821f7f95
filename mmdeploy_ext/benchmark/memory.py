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

from mmdeploy_ext.core.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    import numpy as np

    from mmdeploy_ext.inputs.pictures import PreparedImage
    from mmdeploy_ext.runtime.frames import Frame, Stepper

RUNS = 3
HOW = (
    'each contender alone in a fresh process, resident set from /proc/self/status; peak: highest while '
    'loading and running three batches; resident: after them; both less what was there before loading'
)


@dataclasses.dataclass(frozen=True)
class MemoryJob:
    """What a child process loads and runs; either a model or a graph.

    Attributes:
        threads: of the engine.
        register: imports the projects (model).
        config: path of the config (model).
        checkpoint: path of the weights (model).
        cfg_options: overrides (model).
        images: one batch (model).
        fuse: fold batch normalisation into the convolutions (model).
        engine: its name in `registry.ENGINES` (graph, stream); '' for a model.
        file: the ONNX file (graph).
        feeds: its inputs, and perhaps others (graph).
        frames: of a drive (streaming model).
        stream: its exported file or folder; '' for the model itself.
        call: loads and runs something else; returns the kB before it was loaded, and what has to stay alive.
    """

    threads: int
    register: Callable[[], None] | None = None
    config: str = ''
    checkpoint: str = ''
    cfg_options: dict[str, Any] | None = None
    images: Sequence[PreparedImage] = ()
    fuse: bool = False
    engine: str = ''
    file: str = ''
    feeds: dict[str, np.ndarray] | None = None
    frames: Sequence[Frame] = ()
    stream: str = ''
    call: Callable[[MemoryJob], tuple[int, object]] | None = None


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


def _run_graph(job: MemoryJob) -> tuple[int, object]:
    """Run a graph; returns the kB before it was loaded, and the backend (it has to stay alive)."""
    from mmdeploy_ext.engines.registry import ENGINES

    engine = ENGINES[job.engine]
    backend = engine.open(job.file, job.threads)
    importlib.import_module(engine.package)
    before = start()
    backend.activate()
    feeds = {name: array for name, array in job.feeds.items() if name in backend.spec.input_names}
    for _ in range(RUNS):
        backend.infer(feeds)
    return before, backend


def _run_model(job: MemoryJob) -> tuple[int, object]:
    """Run a model; returns the kB before it had weights, and the model (it has to stay alive)."""
    from mmdeploy_ext.stack import compat

    compat.apply()
    import torch

    from mmdeploy_ext.deploy import deployment as deploy
    from mmdeploy_ext.exporting import fold

    torch.set_num_threads(job.threads)
    job.register()
    before = 0

    def note(_cfg: object, _family: object, model: torch.nn.Module) -> None:
        nonlocal before
        weights = sum(
            tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers())
        )
        before = start() - weights // 1024

    deployment = deploy.load(job.config, job.checkpoint, job.cfg_options, before_weights=note)
    if job.fuse:
        deployment.model = fold.fuse(deployment.model)
    if job.frames:
        return before, _drive(deployment.family.reference(deployment.model), job.frames)
    for _ in range(RUNS):
        deployment.family.reference_detections(deployment.model, job.images, True)
    return before, deployment


def _run_stream(job: MemoryJob) -> tuple[int, object]:
    """Run exported files of a streaming model; returns the kB before they were loaded, and the stepper."""
    from mmdeploy_ext.engines.registry import ENGINES
    from mmdeploy_ext.stack import compat

    compat.apply()
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.deploy.sequence_files import read_files
    from mmdeploy_ext.families.base import FAMILIES

    engine = ENGINES[job.engine]
    importlib.import_module(engine.package)
    job.register()
    load_config(job.config, job.cfg_options)  # its plugin registers the family
    files = read_files(job.stream)
    before = start()
    runner = FAMILIES[files.metadata.family].runner(files.paths, engine.runner_options(job.threads))
    return before, _drive(runner, job.frames)


def _drive(stepper: Stepper, frames: Sequence[Frame]) -> Stepper:
    for frame in frames:
        stepper.step(frame)
    return stepper


def _child(job: MemoryJob, answer: Connection) -> None:
    try:
        run = job.call or (_run_stream if job.stream else _run_graph if job.engine else _run_model)
        before, kept = run(job)
        answer.send(
            dict(
                peak_mb=round((_status_kb('VmHWM') - before) / 1024, 1),
                resident_mb=round((_status_kb('VmRSS') - before) / 1024, 1),
            )
        )
        del kept
    except Exception:
        answer.send(traceback.format_exc(limit=3))


def measure(job: MemoryJob) -> dict[str, float]:
    """Load and run a contender in a fresh process.

    Returns:
        `peak_mb` and `resident_mb`, MiB more than before loading.

    Raises:
        EngineError: the process failed or was killed.
    """
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, sender), daemon=True)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = 'the process ended without an answer'
    process.join()
    if isinstance(result, str):
        raise EngineError(
            f'memory of {job.file or job.config}: {result.strip().splitlines()[-1]} (exit status '
            f'{process.exitcode}); --no-memory leaves this out'
        )
    return result
