"""Voxels of any number to measure sparse backbones on, and what is told of these beside their times.

The work in a scene, how times grow with it, how wrong spconv races.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.benchmark.measure import LEAST_ROUNDS, repeated
from mmdeploy_ext.benchmark.plan import bar_rows
from mmdeploy_ext.engines.registry import BASELINE, DEFAULT
from mmdeploy_ext.preprocess.points import voxelise
from mmdeploy_ext.proving.tensors import ArrayDistance
from mmdeploy_ext.sparse.plan import plan_of
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.preprocess.points import VoxelRule
    from mmdeploy_ext.proving.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.sparse.ir import SparseGraph, Triple

RACING_RUNS = 3
TWO_BAR, ONE_BAR, MEMORY_BAR, GROWTH_BAR, EXPORT_BAR_S = 0.5, 0.8, 2.0, 1.1, 10.0
"""Rulebook and network against spconv's only correct mode, on 2 threads and on 1; peak memory against it;
growth in voxels; seconds of an export."""
BARS_OF = 'a backbone of 1440x1440x41 cells on a CPU'
PATCH = 24
"""Cells: side of a piece of ground or wall."""
FILLED = 0.45
"""Part of a piece's cells that have points."""
WALLS = 0.3
"""Part of the pieces that stand upright."""
MOST_FILLED = 0.5
"""Part of a small grid that is filled at most."""
POINTS_PER_VOXEL = 3


def surfaces(spatial_shape: Triple, order: str, count: int, seed: int = 0) -> np.ndarray:
    """Return voxels (count, 4) int32 on pieces of ground and wall, as a LiDAR sees them, in random order.

    The pieces have one size, so that a voxel has as many neighbours in a small scene as in a large one: what
    grows is the scene. Pieces overlap now and then, more often when the grid fills; there are fewer voxels on
    a grid without room for so many. The order is that of the axes, 'xyz' or 'zyx'.
    """
    shape = np.array(spatial_shape if order == 'xyz' else spatial_shape[::-1], np.int64)
    count = min(count, int(MOST_FILLED * shape.prod()))
    rng, keys = np.random.default_rng(seed), np.zeros(0, np.int64)
    while len(keys) < count:
        pieces = [_piece(shape, rng) for _ in range(64)]
        keys = np.unique(np.concatenate([keys, *pieces]))
    keys = _whole_pieces_first(keys, count, rng)
    axes = np.stack(np.unravel_index(keys, shape), 1)
    if order == 'zyx':
        axes = axes[:, ::-1]
    return np.concatenate([np.zeros((len(axes), 1), np.int32), axes.astype(np.int32)], 1)


def _piece(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the keys of one piece's voxels: nearly flat ground, or a wall along x or y."""
    first, second = np.meshgrid(np.arange(PATCH), np.arange(PATCH), indexing='ij')
    seen = rng.random((PATCH, PATCH)) < FILLED
    first, second = first[seen], second[seen]
    bumps = rng.integers(0, 2, len(first))
    if rng.random() < WALLS:
        cells = [first, bumps, second] if rng.random() < 0.5 else [bumps, first, second]
    else:
        cells = [first, second, bumps]
    corner = rng.integers(-PATCH // 2, np.maximum(shape - PATCH // 2, 1), 3)
    place = np.stack(cells, 1) + corner
    place = place[((place >= 0) & (place < shape)).all(1)]
    return np.ravel_multi_index(tuple(place.T), tuple(shape)).astype(np.int64)


def _whole_pieces_first(keys: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` keys, a contiguous run of them so that neighbours stay together, shuffled."""
    start = int(rng.integers(0, len(keys) - count + 1))
    return rng.permutation(keys[start : start + count])


def points_in(coordinates: np.ndarray, rule: VoxelRule) -> np.ndarray:
    """Return points that fall into voxels (N, 4) in the order of the rule, a few in each.

    They are (P, D) float32: x, y, z in metres, then random values.
    """
    rng = np.random.default_rng(0)
    axes = coordinates[:, 1:] if rule.order == 'xyz' else coordinates[:, :0:-1]
    axes = np.repeat(axes, POINTS_PER_VOXEL, axis=0)
    # away from the faces, where float32 decides
    place = axes + rng.uniform(0.2, 0.8, axes.shape)
    metres = place * np.array(rule.voxel_size) + np.array(rule.point_cloud_range[:3])
    rest = rng.random((len(axes), rule.in_channels - 3))
    return rng.permutation(np.concatenate([metres, rest], 1)).astype(np.float32)


def growth_exponent(counts: Sequence[int], milliseconds: Sequence[float]) -> float | None:
    """Return the slope of log(time) over log(voxels), by least squares; None of fewer than two sizes."""
    if len(set(counts)) < 2 or min(milliseconds) <= 0:
        return None
    return round(float(np.polyfit(np.log(counts), np.log(milliseconds), 1)[0]), 3)


def pair_flops(graph: SparseGraph, coordinates: np.ndarray) -> dict[str, Any]:
    """Return `gflop` of all existing pairs, their number `pairs`, and the most active `sites` of a level."""
    plan = plan_of(graph)
    rulebook = build(plan, coordinates)
    flops = pairs = 0
    for node in graph.convolutions():
        rows_in = len(rulebook.level(node.inputs[0]))
        count = int((rulebook.tables[plan.table_of[node.name]] < rows_in).sum())
        flops += 2 * count * node.in_channels * node.out_channels
        pairs += count
    return dict(pairs=pairs, sites=max(map(len, rulebook.levels)), gflop=round(flops / 1e9, 9))


def gemm_flops(threads: int, seconds: float = 1.0) -> float:
    """Return the FLOP/s of a float32 GEMM with so many threads: the best of many short runs."""
    import torch

    rows, inner, columns = 2048, 512, 256
    with _torch_threads(threads):
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        left @ right
        best, end = float('inf'), time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def add_roofline(rows: Sequence[dict[str, Any]], gflop: float, roofline: Mapping[int, float]) -> None:
    """Put into rows how far their networks are from the time of a GEMM of the same work.

    `gflop` are those of the pairs of this set, the roofline is threads -> FLOP/s of a large GEMM here.
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
    contenders = zip(*(entry['contenders'] for entry in entries), strict=True)
    times = {rows[0]['name']: [row['total_ms']['min'] for row in rows] for rows in contenders}
    return {name: growth_exponent(counts, least) for name, least in times.items()}


def work_growth(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the exponent of the multiplications in the number of voxels: 1 in scenes of equal density."""
    return growth_exponent([entry['voxels'] for entry in entries], [entry['gflop'] for entry in entries])


def held_to(
    entry: Mapping[str, Any], grown: Mapping[str, float | None], exports: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return what the portable file on ONNX Runtime is held to, as far as it was measured; see `bar_rows`.

    `entry` is of the set that the bars are about, the real sweep where there is one.
    """
    rows = {(row['engine'], row['threads']): row for row in entry['contenders']}
    spconv = rows.get((BASELINE, 1))
    values: list[tuple[str, float | None, float]] = []
    for threads, bar in ((1, ONE_BAR), (2, TWO_BAR)):
        row = rows.get((DEFAULT.name, threads))
        if row is None or spconv is None:
            continue
        on = f'{threads} thread{"s" * (threads > 1)}, against spconv'
        name = f'{entry["name"]}: rulebook and network on {on}'
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
    geometry = list(rule.voxel_size), list(rule.point_cloud_range)
    layer, tensor = Voxelization(*geometry, rule.max_points, rule.max_voxels), torch.from_numpy(points)

    def by_mmcv() -> None:
        with torch.no_grad():
            found, _, counts = layer(tensor)
            found.sum(1) / counts[:, None]

    runs = {'numba': lambda: voxelise(points, rule)}
    if rule.mode == 'hard':
        runs['mmcv'] = by_mmcv
    return {name: repeated(run, LEAST_ROUNDS)['median'] for name, run in runs.items()}


def racing_rows(deployment: Deployment, voxels: VoxelSet, cores: int) -> dict[str, Any]:
    """Run spconv with all threads, which is wrong, and say by how much: relative to the largest value."""
    from threadpoolctl import threadpool_limits

    from mmdeploy_ext import compat
    from mmdeploy_ext.compat import patches_spconv
    from mmdeploy_ext.compat.import_hook import patched

    family, model = deployment.family, deployment.model
    right = family.run_encoder(model, voxels.features, voxels.coordinates)
    seconds, worst = [], 0.0
    with (
        _torch_threads(cores),
        patched(compat, single_thread=contextlib.nullcontext),
        patched(patches_spconv, _one_thread=contextlib.nullcontext),
        threadpool_limits(limits=cores, user_api='openmp'),
    ):
        for _ in range(RACING_RUNS):
            start = time.perf_counter()
            dense = family.run_encoder(model, voxels.features, voxels.coordinates)
            seconds.append(time.perf_counter() - start)
            worst = max(worst, ArrayDistance(dense, right).max_rel)
    return dict(
        threads=cores, voxels=len(voxels.features), runs=RACING_RUNS, worst_rel=worst,
        median_ms=round(float(np.median(seconds)) * 1e3, 2),
    )  # fmt: skip
