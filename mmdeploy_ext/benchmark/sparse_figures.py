"""Generated scenes for the benchmark of sparse backbones, and its figures beside times.

The figures: the work in a scene, how times grow with it, and the error of spconv with several threads.

Glossary: N voxels, P points, D values of a point.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.benchmark.base import bar_rows
from mmdeploy_ext.benchmark.measure import MIN_ROUNDS, repeated
from mmdeploy_ext.core.arrays import ArrayDistance
from mmdeploy_ext.engines.registry import BASELINE, DEFAULT
from mmdeploy_ext.preprocess.points import voxelise
from mmdeploy_ext.sparse.plan import plan_of
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mmdeploy_ext.families.model import Model
    from mmdeploy_ext.preprocess.points import VoxelRule
    from mmdeploy_ext.proving.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.sparse.ir import SparseGraph, Triple

RACING_RUNS = 3
"""Runs of spconv with several threads."""
TWO_BAR, ONE_BAR, MEMORY_BAR, GROWTH_BAR, EXPORT_BAR_S = 0.5, 0.8, 2.0, 1.1, 10.0
"""Largest values that pass.

The first two are ratios of the time of rulebook and network, on 2 threads and on 1, to that of spconv on one
thread, its only correct mode; the third is the ratio of peak memories; the fourth is the exponent of the time
in the number of voxels; the last are seconds of an export.
"""
BARS_OF = 'a backbone of 1440x1440x41 cells on a CPU'
"""The model and machine for which the bars were set."""
PATCH = 24
"""Side of a piece of ground or wall, cells."""
FILLED = 0.45
"""Share of the cells of a piece that have points."""
WALLS = 0.3
"""Share of the pieces that stand upright."""
MAX_FILLED = 0.5
"""Largest share of a small grid that is filled."""
POINTS_PER_VOXEL = 3
"""Points that `points_in` draws in a voxel."""


def surfaces(spatial_shape: Triple, order: str, count: int, seed: int = 0) -> np.ndarray:
    """Return voxels (count, 4) int32 on pieces of ground and wall, as a LiDAR sees them, in random order.

    The columns are the index in the batch, 0, and the axes in `order`, 'xyz' or 'zyx', which is also that of
    `spatial_shape`. Pieces have one size, so that a voxel has as many neighbours in a small scene as in a
    large one. Pieces may overlap, more often when the grid fills. A small grid gets fewer voxels, see
    `MAX_FILLED`. `seed` decides on the pieces.
    """
    shape = np.array(spatial_shape if order == 'xyz' else spatial_shape[::-1], np.int64)
    count = min(count, int(MAX_FILLED * shape.prod()))
    rng, keys = np.random.default_rng(seed), np.zeros(0, np.int64)
    while len(keys) < count:
        pieces = [_piece(shape, rng) for _ in range(64)]
        keys = np.unique(np.concatenate([keys, *pieces]))
    start = int(rng.integers(0, len(keys) - count + 1))
    keys = rng.permutation(keys[start : start + count])  # a contiguous run: neighbours stay together
    axes = np.stack(np.unravel_index(keys, shape), 1)
    if order == 'zyx':
        axes = axes[:, ::-1]
    return np.concatenate([np.zeros((len(axes), 1), np.int32), axes.astype(np.int32)], 1)


def _piece(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the flat indices of the voxels of one piece: nearly flat ground, or a wall along x or y."""
    first, second = np.meshgrid(np.arange(PATCH), np.arange(PATCH), indexing='ij')
    filled = rng.random((PATCH, PATCH)) < FILLED
    first, second = first[filled], second[filled]
    bumps = rng.integers(0, 2, len(first))
    if rng.random() < WALLS:
        cells = [first, bumps, second] if rng.random() < 0.5 else [bumps, first, second]
    else:
        cells = [first, second, bumps]
    corner = rng.integers(-PATCH // 2, np.maximum(shape - PATCH // 2, 1), 3)
    coordinates = np.stack(cells, 1) + corner
    coordinates = coordinates[((coordinates >= 0) & (coordinates < shape)).all(1)]
    return np.ravel_multi_index(tuple(coordinates.T), tuple(shape)).astype(np.int64)


def points_in(coordinates: np.ndarray, rule: VoxelRule) -> np.ndarray:
    """Return points (P, D) float32 inside voxels (N, 4), whose axes are in the order of the rule.

    There are `POINTS_PER_VOXEL` in each, all in random order. The columns are x, y, z in metres in the
    LiDAR's frame, then random values, 0..1.
    """
    rng = np.random.default_rng(0)
    axes = coordinates[:, 1:] if rule.order == 'xyz' else coordinates[:, :0:-1]
    axes = np.repeat(axes, POINTS_PER_VOXEL, axis=0)
    # away from the faces, where rounding to float32 would decide
    positions = axes + rng.uniform(0.2, 0.8, axes.shape)
    xyz_m = positions * np.array(rule.voxel_size) + np.array(rule.point_cloud_range[:3])
    features = rng.random((len(axes), rule.in_channels - 3))
    return rng.permutation(np.concatenate([xyz_m, features], 1)).astype(np.float32)


def growth_exponent(counts: Sequence[int], milliseconds: Sequence[float]) -> float | None:
    """Return the slope of log(time) over log(voxels) by least squares.

    It is None for fewer than two different numbers of voxels, or if a time is 0; 1 means that time grows in
    proportion to the voxels. `counts` are numbers of voxels, `milliseconds` the times for them.
    """
    if len(set(counts)) < 2 or min(milliseconds) <= 0:
        return None
    return round(float(np.polyfit(np.log(counts), np.log(milliseconds), 1)[0]), 3)


def pair_flops(graph: SparseGraph, coordinates: np.ndarray) -> dict[str, Any]:
    """Return how much a graph has to compute for voxels (N, 4), whose axes are in its order.

    The entries are `pairs`, the number of pairs of an input voxel and a place of a kernel in all
    convolutions, `gflop`, 1e9 multiplications and additions of them, and `sites`, the number of voxels of the
    level that has most. `coordinates` are integers, the index in the batch first.
    """
    plan = plan_of(graph)
    rulebook = build(plan, coordinates)
    flops = pairs = 0
    for node in graph.convolutions():
        rows_in = len(rulebook.level(node.inputs[0]))
        count = int((rulebook.tables[plan.table_of[node.name]] < rows_in).sum())
        flops += 2 * count * node.in_channels * node.out_channels
        pairs += count
    return dict(pairs=pairs, sites=max(map(len, rulebook.levels)), gflop=round(flops / 1e9, 9))


def gemm_flops(threads: int) -> float:
    """Return the FLOP/s of a float32 GEMM on a number of threads: the best of the runs in a second."""
    import torch

    rows, inner, columns = 2048, 512, 256
    with _torch_threads(threads):
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        left @ right
        best, end = float('inf'), time.perf_counter() + 1
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
    """Add to rows the time of a GEMM of the same work, and the ratio of the network's time to it.

    They are `roofline_ms`, and `of_roofline`, which is None without work. Rows are those of contenders in the
    JSON file; `gflop` is the work of the pairs of this set, `roofline` is threads -> FLOP/s of a large GEMM.
    """
    for row in rows:
        gemm_ms = gflop / roofline[row['threads']] * 1e12
        row['roofline_ms'] = round(gemm_ms, 3)
        row['of_roofline'] = round(row['parts_ms']['network']['median'] / gemm_ms, 2) if gemm_ms else None


def growth(entries: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return contender -> exponent of its time in the number of voxels; {} for fewer than two sets.

    `entries` are those of sets of voxels in the JSON file. An exponent is None if it cannot be told, see
    `growth_exponent`.

    The fastest run of each size counts: other processes disturb long runs, which are those of large scenes,
    more often than short ones, and a median would take that for growth.
    """
    if len(entries) < 2:
        return {}
    counts = [entry['voxels'] for entry in entries]
    contenders = zip(*(entry['contenders'] for entry in entries), strict=True)
    times = {rows[0]['name']: [row['total_ms']['min'] for row in rows] for rows in contenders}
    return {name: growth_exponent(counts, times_ms) for name, times_ms in times.items()}


def work_growth(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the exponent of the multiplications in the number of voxels: 1 in scenes of equal density.

    `entries` are those of `growth`; None if it cannot be told.
    """
    return growth_exponent([entry['voxels'] for entry in entries], [entry['gflop'] for entry in entries])


def thread_count(threads: int) -> str:
    """Return the number in words: '1 thread', '2 threads' and so on."""
    return f'{threads} thread{"" if threads == 1 else "s"}'


def check_bars(
    entry: Mapping[str, Any], exponents: Mapping[str, float | None], export_s: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return the `bar_rows` of the figures that were measured.

    They are times and memory of the portable file on ONNX Runtime with 1 and 2 threads, the growth of all
    contenders but spconv, and the seconds of the export to libspconv.

    Args:
        entry: entry of the main set in the JSON file.
        exponents: result of `growth`; None of one that could not be told.
        export_s: target -> seconds of an export.
    """
    rows = {(row['engine'], row['threads']): row for row in entry['contenders']}
    spconv = rows.get((BASELINE, 1))
    values: list[tuple[str, float | None, float]] = []
    for threads, bar in ((1, ONE_BAR), (2, TWO_BAR)):
        row = rows.get((DEFAULT.name, threads))
        if row is None or spconv is None:
            continue
        name = f'{entry["name"]}: rulebook and network on {thread_count(threads)}, against spconv'
        values.append((name, row['ratio_to_torch']['median'], bar))
        if row.get('memory') and spconv.get('memory'):
            ratio = row['memory']['peak_mb'] / max(spconv['memory']['peak_mb'], 1e-9)
            values.append((f'peak memory on {threads}, against spconv', round(ratio, 3), MEMORY_BAR))
    values += [
        (f'growth in voxels, {name}', exponent, GROWTH_BAR)
        for name, exponent in exponents.items()
        if name != BASELINE
    ]
    return bar_rows([*values, ('seconds of the export to libspconv', export_s['libspconv'], EXPORT_BAR_S)])


def voxelise_ms(rule: VoxelRule, voxels: VoxelSet) -> dict[str, float]:
    """Return name of the code -> median milliseconds in which points become these voxels; {} for no voxels.

    'numba' is this project's code; 'mmcv' is there if the rule's mode is 'hard'.
    """
    import torch
    from mmcv.ops import Voxelization

    if not len(voxels.coordinates):
        return {}
    points = points_in(voxels.coordinates, rule)
    geometry = list(rule.voxel_size), list(rule.point_cloud_range)
    layer, tensor = Voxelization(*geometry, rule.max_points, rule.max_voxels), torch.from_numpy(points)

    def by_mmcv() -> None:
        with torch.no_grad():
            features, _, counts = layer(tensor)
            features.sum(1) / counts[:, None]

    runs = {'numba': lambda: voxelise(points, rule)}
    if rule.mode == 'hard':
        runs['mmcv'] = by_mmcv
    return {name: repeated(run, MIN_ROUNDS)['median'] for name, run in runs.items()}


def racing_spconv(deployment: Model, voxels: VoxelSet, cores: int) -> dict[str, Any]:
    """Run spconv on voxels with as many threads as `cores`, with which its kernels race.

    The entries that are returned are `threads`, `voxels`, their number, `runs`, `worst_rel`, the largest
    error in all runs relative to the largest value of the result of one thread, infinite if a value is NaN in
    one of both, and `median_ms`. `deployment` is a sparse backbone, in whose order the coordinates of
    `voxels` are.
    """
    from threadpoolctl import threadpool_limits

    from mmdeploy_ext import compat
    from mmdeploy_ext.compat import patches_spconv
    from mmdeploy_ext.compat.import_hook import patched

    family, model = deployment.family, deployment.model
    reference = family.run_encoder(model, voxels.features, voxels.coordinates)
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
            worst = max(worst, ArrayDistance(dense, reference).max_rel)
    return dict(
        threads=cores,
        voxels=len(voxels.features),
        runs=RACING_RUNS,
        worst_rel=worst,
        median_ms=round(float(np.median(seconds)) * 1e3, 2),
    )
