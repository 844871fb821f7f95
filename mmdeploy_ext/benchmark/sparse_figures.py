"""What is told of a sparse backbone beside its times: the work in a scene, growth, how wrong spconv races."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.benchmark.measure import LEAST_ROUNDS
from mmdeploy_ext.benchmark.plan import bar_rows
from mmdeploy_ext.benchmark.scenes import growth_exponent, points_in
from mmdeploy_ext.engines.registry import BASELINE, DEFAULT
from mmdeploy_ext.inputs.points import voxelise
from mmdeploy_ext.sparse.plan import plan_of
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.inputs.points import VoxelRule
    from mmdeploy_ext.proof.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.sparse.ir import SparseGraph

RACING_RUNS = 3
TWO_BAR, ONE_BAR, MEMORY_BAR, GROWTH_BAR, EXPORT_BAR_S = 0.5, 0.8, 2.0, 1.1, 10.0
"""Rulebook and network against spconv's only correct mode, on 2 threads and on 1; peak memory against it;
growth in voxels; seconds of an export."""
BARS_OF = 'a backbone of 1440x1440x41 cells on a CPU'


def pair_flops(graph: SparseGraph, coordinates: np.ndarray) -> dict[str, Any]:
    """Return `gflop` of all existing pairs, their number `pairs`, and the most active `sites` of a level."""
    plan = plan_of(graph)
    rulebook = build(plan, coordinates)
    flops = pairs = 0
    for node in graph.convolutions():
        rows_in = len(rulebook.level(node.inputs[0]))
        count = int((rulebook.table(plan.table_of[node.name]) < rows_in).sum())
        flops += 2 * count * node.in_channels * node.out_channels
        pairs += count
    return dict(pairs=pairs, sites=max(map(len, rulebook.levels)), gflop=round(flops / 1e9, 9))


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


def add_roofline(rows: Sequence[dict[str, Any]], gflop: float, roofline: Mapping[int, float]) -> None:
    """Put into rows how far their networks are from the time of a GEMM of the same work.

    Args:
        rows: of the contenders.
        gflop: of the multiplications that the pairs of this set need.
        roofline: threads -> FLOP/s of a large GEMM on this machine.
    """
    for row in rows:
        least_ms = gflop / roofline[row['threads']] * 1e12
        row['roofline_ms'] = round(least_ms, 3)
        row['of_roofline'] = round(row['parts_ms']['network']['median'] / least_ms, 2) if least_ms else None


def growth(entries: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return contender -> exponent of its time in the number of voxels.

    The fastest run of each size counts: what others do on the machine hits long runs, which are those of
    large scenes, more often than short ones, and a median would take that for growth.
    """
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
    exponent = growth_exponent([entry['voxels'] for entry in entries], [entry['gflop'] for entry in entries])
    return None if exponent is None else round(exponent, 3)


def held_to(
    entry: Mapping[str, Any], grown: Mapping[str, float | None], exports: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return what the portable file on ONNX Runtime is held to, as far as it was measured; see `bar_rows`.

    Args:
        entry: of the set that the bars are about, the real sweep where there is one.
        grown: of `growth`.
        exports: seconds of an export by target.
    """
    rows = {(row['engine'], row['threads']): row for row in entry['contenders']}
    spconv = rows.get((BASELINE, 1))
    values: list[tuple[str, float | None, float]] = []
    for threads, bar in ((1, ONE_BAR), (2, TWO_BAR)):
        row = rows.get((DEFAULT.name, threads))
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
        (f'growth in voxels, {name}', value, GROWTH_BAR) for name, value in grown.items() if name != BASELINE
    ]
    return bar_rows([*values, ('seconds of the export to libspconv', exports['libspconv'], EXPORT_BAR_S)])


def voxelise_ms(rule: VoxelRule, voxels: VoxelSet) -> dict[str, float]:
    """Return the time of making these voxels from points: this project's way, one thread, and mmcv's."""
    import torch
    from mmcv.ops import Voxelization

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


def racing_rows(deployment: Deployment, voxels: VoxelSet, cores: int) -> dict[str, Any]:
    """Run spconv with all threads, which is wrong, and say how wrong.

    Returns:
        Median ms, largest difference from one thread over the largest value, rounds.
    """
    import torch
    from threadpoolctl import threadpool_limits

    from mmdeploy_ext.stack import compat, patches_spconv
    from mmdeploy_ext.stack.import_hook import patched

    family, model = deployment.family, deployment.model
    right = family.run_encoder(model, voxels.features, voxels.coordinates)
    seconds, worst, before = [], 0.0, torch.get_num_threads()
    free = dict(single_thread=contextlib.nullcontext)
    try:
        torch.set_num_threads(cores)
        with (
            patched(compat, **free),
            patched(patches_spconv, _one_thread=contextlib.nullcontext),
            threadpool_limits(limits=cores, user_api='openmp'),
        ):
            for _ in range(RACING_RUNS):
                start = time.perf_counter()
                dense = family.run_encoder(model, voxels.features, voxels.coordinates)
                seconds.append(time.perf_counter() - start)
                worst = max(worst, float(np.abs(dense - right).max()))
    finally:
        torch.set_num_threads(before)
    scale = float(np.abs(right).max()) or 1.0
    return dict(
        threads=cores, voxels=len(voxels.features), runs=RACING_RUNS, worst_rel=worst / scale,
        median_ms=round(float(np.median(seconds)) * 1e3, 2),
    )  # fmt: skip
