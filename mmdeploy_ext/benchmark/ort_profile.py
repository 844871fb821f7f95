"""The time of each operator of a graph by ONNX Runtime's profiler. Timed sessions are never profiled."""

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
"""Runs that count, after one that does not."""


def profile_graph(path: str, feeds: Mapping[str, np.ndarray], threads: int) -> dict[str, Any]:
    """Run a file in a separate ONNX Runtime session with the profiler.

    Args:
        path: path of the file.
        feeds: input name -> array; surplus ones are ignored.
        threads: number of threads within an operator.

    Returns:
        `operators`, `nodes` and `parts`, lists of dicts, the slowest first, of `name`, `calls` per run, `ms`
        per run, and `share` of the time of all nodes, 0..1. They are the ten slowest operator types, the ten
        slowest nodes, and all stages of the exported module, with which the names of nodes begin; nodes
        without a stage are 'layout changes'. `runs`: number of profiled runs, without the warm-up.
    """
    with tempfile.TemporaryDirectory(prefix='mm2onnx_profile_') as folder:
        prefix = str(Path(folder) / 'ort')
        with build_backend(DEFAULT.backend, path, threads=threads, profile_prefix=prefix) as backend:
            for _ in range(PROFILED_RUNS + 1):
                backend.infer(backend.select_inputs(feeds))
            events = json.loads(Path(backend.session.end_profiling()).read_text(encoding='utf-8'))
    return summarise_profile(events)


def summarise_profile(events: Sequence[Mapping[str, Any]], limit: int = 10) -> dict[str, Any]:
    """Return the result of `profile_graph` from events of ONNX Runtime's profiler.

    `events` are those of the profiler's JSON file, with times in microseconds; `limit` is the number of
    operators and of nodes that are returned.
    """
    ends = sorted(event['ts'] + event['dur'] for event in events if event.get('name') == 'model_run')
    kernels = [
        event
        for event in events
        if event.get('cat') == 'Node' and event['name'].endswith('_kernel_time') and event['ts'] >= ends[0]
    ]
    runs, total = len(ends) - 1, sum(event['dur'] for event in kernels) or 1

    def slowest(key: Callable[[Mapping[str, Any]], str]) -> list[dict[str, Any]]:
        groups: dict[str, list[int]] = {}
        for event in kernels:
            groups.setdefault(key(event), []).append(event['dur'])
        ordered = sorted(groups.items(), key=lambda item: -sum(item[1]))
        return [
            dict(
                name=name,
                calls=round(len(durations) / runs, 2),
                ms=round(sum(durations) / runs / 1e3, 3),
                share=round(sum(durations) / total, 4),
            )
            for name, durations in ordered
        ]

    def stage(event: Mapping[str, Any]) -> str:
        prefix, separator, _ = event['name'].partition('/')
        return prefix if separator else 'layout changes'

    return dict(
        operators=slowest(lambda event: event['args']['op_name'])[:limit],
        nodes=slowest(lambda event: event['name'].removesuffix('_kernel_time'))[:limit],
        parts=slowest(stage),
        runs=runs,
    )
