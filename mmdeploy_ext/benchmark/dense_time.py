"""How much faster an INT8 file is than the float file it was made of: both in one run, in turns."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.engines import ENGINES, build_backend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from mmdeploy_ext.benchmark.measure import Contender
    from mmdeploy_ext.engines import Backend

WARMUP = 3


def time_ratio(
    reference: str,
    candidate: str,
    batches: Sequence[Mapping[str, np.ndarray]],
    rounds: int,
    threads: int = 0,
    engine: str = 'onnxruntime',
) -> dict[str, Any]:
    """Run two files in turns on the same batches.

    Args:
        reference: the float file.
        candidate: the INT8 file.
        batches: input name -> array.
        rounds: that count; each runs both once.
        threads: of the engine; 0 leaves the choice to it.
        engine: its name; runs both files.

    Returns:
        `ratio` (candidate over reference, per round), `cpu_ratio` (of the time on cores, which other
        processes hardly change with one thread; with more, waiting threads count), `float_ms`, `int8_ms`:
        median and quartiles; rounds, threads, height and width of the first batch, what others used of the
        cores.
    """
    from mmdeploy_ext.benchmark.machine import QUIET_SHARE
    from mmdeploy_ext.benchmark.measure import interleave, milliseconds, spread

    info = ENGINES[engine]
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(build_backend(info.backend, path, threads=threads, **info.shared))
            for path in (reference, candidate)
        ]
        contenders = [_contender(name, file) for name, file in zip(('float', 'int8'), files, strict=True)]
        runs = interleave(contenders, batches, rounds, WARMUP, spare=rounds)
    one, other = ([run.total_s for run in runs[name]] for name in ('float', 'int8'))
    cpu = ([run.parts_s['cpu'] for run in runs[name]] for name in ('float', 'int8'))
    loads = [run.other_load for run in runs['float'] if run.other_load is not None]
    height, width = next(iter(batches[0].values())).shape[-2:]
    return dict(
        ratio=spread((b / a for a, b in zip(one, other, strict=True)), 4),
        cpu_ratio=spread((b / a for a, b in zip(*cpu, strict=True)), 4),
        float_ms=milliseconds(one),
        int8_ms=milliseconds(other),
        rounds=rounds,
        engine=engine,
        threads=threads,
        height=height,
        width=width,
        other_load=sum(loads) / len(loads) if loads else None,
        quiet_share=QUIET_SHARE,
    )


def _contender(name: str, backend: Backend) -> Contender:
    from mmdeploy_ext.benchmark.measure import Contender, Run

    def run(feeds: Mapping[str, np.ndarray]) -> Run:
        start, cpu = time.perf_counter(), time.process_time()
        backend.infer(feeds)
        return Run(time.perf_counter() - start, None, 0, parts_s={'cpu': time.process_time() - cpu})

    return Contender(name, backend.engine, backend.metadata.form, run, backend.path)
