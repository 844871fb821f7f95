"""How much faster an INT8 file is than the float file it was made of: both in one run, in turns."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.benchmark.machine import QUIET_SHARE
from mmdeploy_ext.benchmark.measure import (
    Contender,
    interleave,
    mean_load,
    milliseconds,
    ratio,
    spread,
    timed,
)
from mmdeploy_ext.engines import ENGINES, build_backend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

WARMUP = 3


def time_ratio(
    reference: str,
    candidate: str,
    batches: Sequence[Mapping[str, np.ndarray]],
    rounds: int,
    threads: int = 0,
    engine: str = 'onnxruntime',
) -> dict[str, Any]:
    """Run two files, the float one and the INT8 one, in turns on the same batches (input name -> array).

    Rounds are those that count; `threads` are of the engine that runs both files, 0 leaves them to it.

    Returns:
        `ratio` (candidate over reference, per round), `cpu_ratio` (of the time on cores, which other
        processes hardly change with one thread; with more, waiting threads count), `float_ms`, `int8_ms`:
        median and quartiles; rounds, threads, height and width of the first batch, what others used of the
        cores.
    """
    info = ENGINES[engine]
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(build_backend(info.backend, path, threads=threads, **info.shared))
            for path in (reference, candidate)
        ]
        contenders = [
            Contender(name, file.engine, file.metadata.form, timed(file.infer), file.path)
            for name, file in zip(('float', 'int8'), files, strict=True)
        ]
        runs = interleave(contenders, batches, rounds, WARMUP, spare=rounds)
    one, other = runs['float'], runs['int8']
    cpu = ([run.parts_s['cpu'] for run in mine] for mine in (one, other))
    height, width = next(iter(batches[0].values())).shape[-2:]
    return dict(
        ratio=ratio(other, one),
        cpu_ratio=spread((b / a for a, b in zip(*cpu, strict=True)), 4),
        float_ms=milliseconds(run.total_s for run in one),
        int8_ms=milliseconds(run.total_s for run in other),
        rounds=rounds,
        engine=engine,
        threads=threads,
        height=height,
        width=width,
        other_load=mean_load([runs]),
        quiet_share=QUIET_SHARE,
    )
