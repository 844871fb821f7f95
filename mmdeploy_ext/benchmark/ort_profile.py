"""Where a graph's time goes, by ONNX Runtime's own profiler. Timed sessions are never profiled."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.engines.registry import DEFAULT, build_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

PROFILED_RUNS = 5


def profile_graph(path: str, feeds: Mapping[str, np.ndarray], threads: int) -> dict[str, Any]:
    """Run a file in an ONNX Runtime session of its own with the profiler on; feeds may be more than it takes.

    Returns:
        `operators`: the ten slowest operator types with calls and milliseconds per run and their share;
        `nodes`: the same of single nodes; `parts`: by stage of the chain that was exported; `runs`.
    """
    with tempfile.TemporaryDirectory(prefix='mm2onnx_profile_') as folder:
        prefix = str(Path(folder) / 'ort')
        with build_backend(DEFAULT.backend, path, threads=threads, profile_prefix=prefix) as backend:
            for _ in range(PROFILED_RUNS + 1):
                backend.infer(backend.known(feeds))
            events = json.loads(Path(backend.session.end_profiling()).read_text(encoding='utf-8'))
    return summarise_profile(events)


def summarise_profile(events: Sequence[Mapping[str, Any]], most: int = 10) -> dict[str, Any]:
    """Sum the events of ONNX Runtime's profiler; the first run is warm-up and left out."""
    ends = sorted(event['ts'] + event['dur'] for event in events if event.get('name') == 'model_run')
    kernels = [
        event
        for event in events
        if event.get('cat') == 'Node' and event['name'].endswith('_kernel_time') and event['ts'] >= ends[0]
    ]
    count, whole = len(ends) - 1, sum(event['dur'] for event in kernels) or 1

    def top(key: Callable[[Mapping[str, Any]], str]) -> list[dict[str, Any]]:
        sums: dict[str, list[int]] = {}
        for event in kernels:
            sums.setdefault(key(event), []).append(event['dur'])
        ordered = sorted(sums.items(), key=lambda item: -sum(item[1]))
        return [
            dict(
                name=name,
                calls=round(len(durations) / count, 2),
                ms=round(sum(durations) / count / 1e3, 3),
                share=round(sum(durations) / whole, 4),
            )
            for name, durations in ordered
        ]

    def part(event: Mapping[str, Any]) -> str:
        """Return the stage of a node; changes of memory layout that the engine adds have none."""
        stage, separator, _ = event['name'].partition('/')
        return stage if separator else 'layout changes'

    return dict(
        operators=top(lambda event: event['args']['op_name'])[:most],
        nodes=top(lambda event: event['name'].removesuffix('_kernel_time'))[:most],
        parts=top(part),
        runs=count,
    )
