"""Sparse backbones: spconv against portable ONNX on CPU engines, part by part, interleaved.

A contender's time begins with voxels and ends with the dense map. Parts: 'rulebook' is which voxel meets
which weight, 'network' all else. What voxelises the points is measured beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.benchmark import measure, memory
from mmdeploy_ext.benchmark.sparse_contenders import CONTENDERS, title_of
from mmdeploy_ext.deploy import sparse as deploy
from mmdeploy_ext.sparse import portable
from mmdeploy_ext.sparse.plan import plan_of
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.benchmark.measure import Contender, Run
    from mmdeploy_ext.benchmark.sparse_contenders import SparsePlan
    from mmdeploy_ext.deploy.sparse import SparseDeployment
    from mmdeploy_ext.proof.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.sparse.ir import SparseGraph

LEAST_ROUNDS, CASE_S = 3, 45.0
"""Rounds of one size: at least so many, and no more once they would take longer."""
TWO_BAR, ONE_BAR, MEMORY_BAR, GROWTH_BAR, EXPORT_BAR_S = 0.5, 0.8, 2.0, 1.1, 10.0
"""Rulebook and network against spconv's only correct mode, on 2 threads and on 1; peak memory against it;
growth in voxels; seconds of an export."""


# ---- measuring


def measure_set(
    contenders: Sequence[Contender], voxels: VoxelSet, rounds: int, warmup: int
) -> dict[str, list[Run]]:
    """Run every contender on one set of voxels, in turns, as often as the time allows."""
    start = time.perf_counter()
    measure.interleave(contenders, [voxels], 1, max(warmup - 1, 0))
    taken = (time.perf_counter() - start) / max(warmup, 1)
    allowed = int(min(max(CASE_S / max(taken, 1e-3), LEAST_ROUNDS), rounds))
    return measure.interleave(contenders, [voxels], allowed)


def set_rows(
    contenders: Sequence[Contender],
    runs: Mapping[str, Sequence[Run]],
    flops: float,
    roofline: Mapping[int, float],
) -> list[dict[str, Any]]:
    """Return one plain dict per contender: times, parts, ratio to spconv, distance to the GEMM roofline.

    Args:
        contenders: in the order of the table.
        runs: of `measure_set`.
        flops: of the multiplications that the pairs of this set need.
        roofline: threads -> FLOP/s of a large GEMM on this machine.
    """
    rows = measure.summarise(contenders, runs, 1)
    for row in rows:
        mine = runs[row['name']]
        row['parts_ms'] = {
            part: measure.milliseconds(run.parts_s[part] for run in mine) for part in mine[0].parts_s
        }
        threads = threads_of(row['name'])
        least_ms = flops / roofline[threads] * 1e3
        row.update(threads=threads, roofline_ms=round(least_ms, 3))
        row['of_roofline'] = round(row['parts_ms']['network']['median'] / least_ms, 2) if least_ms else None
        for name in ('images_per_s', 'detections_per_image', 'postprocess_ms', 'samples_ms'):
            row.pop(name)
    return rows


def threads_of(name: str) -> int:
    """Return the threads of a contender by its name; spconv has one."""
    return 1 if name == measure.BASELINE else int(name.split(', ')[1].split()[0])


def pair_flops(graph: SparseGraph, coordinates: np.ndarray) -> tuple[float, int, int]:
    """Return FLOP of all existing pairs, their number, and the most active sites of a level."""
    plan = plan_of(graph)
    rulebook = build(plan, coordinates)
    flops = pairs = 0
    for node in graph.convolutions():
        rows_in = len(rulebook.level(node.inputs[0]))
        count = int((rulebook.table(plan.table_of[node.name]) < rows_in).sum())
        flops += 2 * count * node.in_channels * node.out_channels
        pairs += count
    return float(flops), pairs, max(map(len, rulebook.levels))


def gemm_flops(threads: int, seconds: float = 1.0) -> float:
    """Return the FLOP/s of a float32 GEMM with so many threads: the best of many short runs."""
    import torch

    before = torch.get_num_threads()
    rows, inner, columns = 2048, 512, 256
    try:
        torch.set_num_threads(threads)
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        left @ right
        best, end = float('inf'), time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * rows * inner * columns / best


# ---- memory


def _run_spconv(job: memory.MemoryJob, voxels: VoxelSet) -> tuple[int, object]:
    from mmdeploy_ext.stack import compat

    compat.apply()
    job.register()
    deployment = deploy.load(job.config, job.checkpoint, job.cfg_options)
    deployment.family.run_encoder(deployment.model, voxels.features[:1], voxels.coordinates[:1])
    weights = sum(tensor.nbytes for tensor in deployment.model.state_dict().values())
    before = memory.start() - weights // 1024
    for _ in range(memory.RUNS):
        deployment.family.run_encoder(deployment.model, voxels.features, voxels.coordinates)
    return before, deployment


def _run_portable(job: memory.MemoryJob, voxels: VoxelSet, engine: str, order: str) -> tuple[int, object]:
    importlib.import_module(engine)
    importlib.import_module('mmdeploy_ext.runtime.scn.model')
    before = memory.start()
    contender = CONTENDERS[engine](job.file, job.threads, order)
    for _ in range(memory.RUNS):
        contender.run(voxels)
    return before, contender


def measure_memory(plan: SparsePlan, path: str, voxels: VoxelSet) -> dict[str, dict[str, float]]:
    """Measure every engine on one set of voxels, each in a process of its own.

    What Python and the libraries take when they are imported does not count, weights and activations do.
    """
    deployment, found = plan.deployment, {}
    for engine in plan.engines:
        job = memory.MemoryJob(
            1, plan.register, deployment.config, deployment.checkpoint, deployment.cfg_options, file=path
        )
        if engine == 'torch':
            call = functools.partial(_run_spconv, voxels=voxels)
            found[measure.BASELINE] = memory.measure(dataclasses.replace(job, call=call))
            continue
        for threads in plan.threads:
            call = functools.partial(_run_portable, voxels=voxels, engine=engine, order=plan.graph.order)
            found[title_of(engine, threads)] = memory.measure(
                dataclasses.replace(job, register=None, threads=threads, call=call)
            )
    return found


# ---- export


def export_seconds(deployment: SparseDeployment) -> dict[str, float]:
    """Return the seconds that an export to each target takes, tracing included."""
    found = {}
    with tempfile.TemporaryDirectory(prefix='mm2onnx_benchmark_') as folder:
        for target in deployment.family.options[0].choices:
            options = deploy.resolve(deployment.family.choose(target=target), deployment.family)
            _, seconds = deploy.export_file(deployment, options, str(Path(folder) / 'x.onnx'))
            found[target] = round(seconds, 3)
    return found


def write_portable(graph: SparseGraph, folder: str) -> str:
    """Write the graph that the engines run."""
    path = str(Path(folder) / 'portable.onnx')
    Path(path).write_bytes(portable.to_onnx(graph).SerializeToString())
    return path


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


# ---- the whole


def growth(entries: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return contender -> exponent of its time in the number of voxels.

    The fastest run of each size counts: what others do on the machine hits long runs, which are those of
    large scenes, more often than short ones, and a median would take that for growth.
    """
    from mmdeploy_ext.benchmark.sparse_scene import growth_exponent

    if len(entries) < 2:
        return {}
    counts = [entry['voxels'] for entry in entries]
    names = [row['name'] for row in entries[0]['contenders']]
    found = {}
    for name in names:
        rows = [next(row for row in entry['contenders'] if row['name'] == name) for entry in entries]
        exponent = growth_exponent(counts, [row['total_ms']['min'] for row in rows])
        found[name] = None if exponent is None else round(exponent, 3)
    return found


def work_growth(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the exponent of the multiplications in the number of voxels: 1 in scenes of equal density."""
    from mmdeploy_ext.benchmark.sparse_scene import growth_exponent

    exponent = growth_exponent([entry['voxels'] for entry in entries], [entry['gflop'] for entry in entries])
    return None if exponent is None else round(exponent, 3)


def bar_rows(
    entry: Mapping[str, Any], grown: Mapping[str, float | None], exports: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return what the portable file on ONNX Runtime is held to, as far as it was measured.

    Args:
        entry: of the set that the bars are about, the real sweep where there is one.
        grown: of `growth`.
        exports: of `export_seconds`.

    Returns:
        Rows of name, value, bar (at most) and passed.
    """
    rows = {(row['engine'], row['threads']): row for row in entry['contenders']}
    spconv = rows.get(('torch', 1))
    values: list[tuple[str, float | None, float]] = []
    for threads, bar in ((1, ONE_BAR), (2, TWO_BAR)):
        row = rows.get(('onnxruntime', threads))
        if row is None or spconv is None:
            continue
        name = (
            f'{entry["name"]}: rulebook and network on {threads} thread{"s" * (threads > 1)}, against spconv'
        )
        values.append((name, row['ratio_to_torch']['median'], bar))
        if row.get('memory') and spconv.get('memory'):
            ratio = row['memory']['peak_mb'] / max(spconv['memory']['peak_mb'], 1e-9)
            values.append((f'peak memory on {threads}, against spconv', round(ratio, 3), MEMORY_BAR))
    values += [
        (f'growth in voxels, {name}', value, GROWTH_BAR)
        for name, value in grown.items()
        if value is not None and name != measure.BASELINE
    ]
    values.append(('seconds of the export to libspconv', exports['libspconv'], EXPORT_BAR_S))
    return [dict(name=name, value=value, bar=bar, passed=value <= bar) for name, value, bar in values]


def voxelise_ms(plan: SparsePlan, voxels: VoxelSet) -> dict[str, float]:
    """Return the time of making these voxels from points: this project's way, one thread, and mmcv's."""
    import torch
    from mmcv.ops import Voxelization

    from mmdeploy_ext.benchmark.sparse_scene import points_in
    from mmdeploy_ext.inputs.points import voxelise

    rule = plan.deployment.rule
    if not len(voxels.coordinates):
        return {}
    points = points_in(voxels.coordinates, rule)
    layer = Voxelization(
        list(rule.voxel_size), list(rule.point_cloud_range), rule.max_points, rule.max_voxels
    )
    tensor = torch.from_numpy(points)

    def by_mmcv() -> None:
        with torch.no_grad():
            found, _, counts = layer(tensor)
            found.sum(1) / counts[:, None]

    runs = {'numba': lambda: voxelise(points, rule)}
    if rule.mode == 'hard':
        runs['mmcv'] = by_mmcv
    found = {}
    for name, run in runs.items():
        seconds = []
        for _ in range(LEAST_ROUNDS + 1):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        found[name] = round(float(np.median(seconds[1:])) * 1e3, 3)
    return found
