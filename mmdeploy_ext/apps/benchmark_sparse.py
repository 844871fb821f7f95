"""`benchmark.py` for sparse LiDAR backbones."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.apps.options import refuse_given
from mmdeploy_ext.benchmark.engines import KINDS
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError, after_weights

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.benchmark.sparse_contenders import SparsePlan
    from mmdeploy_ext.deploy.sparse import SparseDeployment
    from mmdeploy_ext.proof.inputs.voxel_sets import VoxelSet

FOREIGN_OPTIONS = (
    'shape', 'samples_per_gpu', 'images', 'fuse_conv_bn', 'profile', 'launcher', 'repeat_num',
    'spare_rounds', 'prepared', 'skip_refused', 'max_seconds', 'log_interval', 'device',
)  # fmt: skip
"""Options of benchmark.py that sparse backbones do not have."""
SPARSE_OPTIONS = ('voxels', 'sweep', 'no_racing')
"""Options that only sparse backbones have."""
DEFAULT_SIZES = (5000, 20000, 60000, 120000)
THREADS = (1, 2)


def add_sparse_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of sparse backbones."""
    group = parser.add_argument_group('sparse LiDAR backbones')
    group.add_argument(
        '--voxels',
        type=int,
        nargs='+',
        metavar='N',
        help=f'sizes of synthetic scenes (default: {" ".join(map(str, DEFAULT_SIZES))})',
    )
    group.add_argument(
        '--sweep',
        nargs='+',
        default=[],
        metavar='FILE',
        help='real sweeps: points (.bin) or voxels (.npz: features and coordinates, coors_bxyz, coors_bzyx)',
    )
    group.add_argument(
        '--no-racing', action='store_true', help='leave out spconv with all threads, which is wrong'
    )


def is_sparse_model(cfg: Any) -> bool:
    """Return whether a config has a sparse LiDAR backbone; its plugin has registered the families by now."""
    from mmdeploy_ext.families.base import BACKBONE, FAMILIES

    families = (family for family in FAMILIES.values() if family.product == BACKBONE)
    return bool(cfg.get('model')) and any(family.claims(cfg) for family in families)


def run_sparse(
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
    engines: Sequence[str],
    register: Callable[[], None],
) -> int:
    """Measure spconv and the portable file on every engine, interleaved, and report."""
    from mmdeploy_ext.deploy import sparse as deploy
    from mmdeploy_ext.proof.inputs.voxel_sets import sweep_set

    refuse_given(args, parser, FOREIGN_OPTIONS, 'sparse LiDAR backbones do not have it')
    unknown = [name for name in engines if name not in KINDS['sparse']]
    if unknown:
        known = ', '.join(KINDS['sparse'])
        raise UsageError(f'--engines {",".join(unknown)}: sparse backbones run on {known}')
    if args.voxels is not None and min(args.voxels) < 1:
        raise UsageError(f'--voxels {" ".join(map(str, args.voxels))}: expected positive numbers')
    if len(args.onnx) > 1:
        raise UsageError(f'--onnx {" ".join(args.onnx)}: sparse backbones take one portable file')
    for path in args.onnx:
        _check_file(path)
    for path in args.sweep:
        if not Path(path).is_file():
            raise UsageError(f'--sweep {path}: no such file')
    sweeps: list[VoxelSet] = []

    def check(cfg: Any, family: Any, settings: Any) -> None:
        sweeps.extend(sweep_set(path, family.preprocess_rule(cfg), cfg, settings) for path in args.sweep)

    cfg_options = shared.parse_cfg_options(args.cfg_options)
    deployment = deploy.load(args.config, args.checkpoint, cfg_options, before_weights=check)
    with after_weights():
        result = _measure(args, engines, deployment, sweeps, register)
        _publish(args, result)
    return 0


def _publish(args: argparse.Namespace, result: dict[str, Any]) -> None:
    from mmdeploy_ext.benchmark import sparse_report
    from mmdeploy_ext.core.files import write_json

    if args.json:
        write_json(args.json, result)
    if args.chart:
        sparse_report.write_chart(result, args.chart)
    sparse_report.print_result(result, cli.stdout())
    if args.chart:
        print(f'chart: {args.chart}')


def _check_file(path: str) -> None:
    """Refuse a file that is no portable sparse backbone."""
    from mmdeploy_ext.runtime.scn.model import ScnOnnx

    ScnOnnx(path, threads=1).close()


def synthetic_sets(deployment: SparseDeployment, sizes: Sequence[int]) -> list[VoxelSet]:
    """Return scenes of so many voxels, with random features."""
    import numpy as np

    from mmdeploy_ext.benchmark.sparse_scene import surfaces
    from mmdeploy_ext.proof.inputs.voxel_sets import VoxelSet

    settings, found = deployment.settings, []
    for size in sorted(set(sizes)):
        coordinates = surfaces(settings.spatial_shape, settings.order, size, seed=size)
        rng = np.random.default_rng(size)
        features = rng.standard_normal((len(coordinates), settings.in_channels)).astype(np.float32)
        found.append(VoxelSet(f'synthetic {len(coordinates)}', features, coordinates))
    return found


def _measure(
    args: argparse.Namespace,
    engines: Sequence[str],
    deployment: SparseDeployment,
    sweeps: Sequence[VoxelSet],
    register: Callable[[], None],
) -> dict[str, Any]:
    from mmdeploy_ext.benchmark import memory, sparse
    from mmdeploy_ext.benchmark.machine import OtherLoad, machine
    from mmdeploy_ext.benchmark.sparse_contenders import SparsePlan, racing_rows
    from mmdeploy_ext.sparse.fold import fold

    graph = fold(deployment.trace(), 'fp32')
    synthetic = synthetic_sets(deployment, args.voxels or DEFAULT_SIZES)
    threads = (args.threads,) if args.threads else THREADS
    sets = [*synthetic, *sweeps]
    plan = SparsePlan(deployment, graph, sets, threads, engines, args.max_iter, args.warmup, register)
    chosen = sweeps[0] if sweeps else synthetic[-1]
    with tempfile.TemporaryDirectory(prefix='mm2onnx_benchmark_') as folder:
        path = args.onnx[0] if args.onnx else sparse.write_portable(graph, folder)
        memories = {}
        if not args.no_memory and memory.is_supported():
            memories = sparse.measure_memory(plan, path, chosen)
        with OtherLoad() as load:
            entries = _measure_sets(plan, path, len(sweeps))
    racing = None
    if 'torch' in engines and not args.no_racing and sparse.cores() > 1:
        racing = racing_rows(plan, sweeps[0] if sweeps else synthetic[0], sparse.cores())
    for entry in entries:
        for row in entry['contenders']:
            row['memory'] = memories.get(row['name']) if entry['name'] == chosen.name else None
    return make_result(plan, entries, racing, load.share, machine(), chosen.name)


def _measure_sets(plan: SparsePlan, path: str, real: int) -> list[dict[str, Any]]:
    from rich.progress import track

    from mmdeploy_ext.benchmark import sparse, sparse_contenders

    roofline = {threads: sparse.gemm_flops(threads) for threads in {1, *plan.threads}}
    entries = []
    with sparse_contenders.open_contenders(plan, path) as contenders:
        for index, voxels in enumerate(track(plan.sets, 'measuring', console=cli.stderr(), transient=True)):
            flops, pairs, sites = sparse.pair_flops(plan.graph, voxels.coordinates)
            runs = sparse.measure_set(contenders, voxels, plan.rounds, plan.warmup)
            rows = sparse.set_rows(contenders, runs, flops, roofline)
            is_real = index >= len(plan.sets) - real
            entries.append(
                dict(
                    name=voxels.name, voxels=len(voxels.features), real=is_real, pairs=pairs, sites=sites,
                    gflop=round(flops / 1e9, 4), rounds=len(next(iter(runs.values()))), contenders=rows,
                    voxelise_ms=sparse.voxelise_ms(plan, voxels),
                )
            )  # fmt: skip
    return entries


def make_result(
    plan: SparsePlan,
    entries: list[dict[str, Any]],
    racing: dict[str, Any] | None,
    other_load: float | None,
    machine: dict[str, Any],
    chosen: str,
) -> dict[str, Any]:
    """Return the content of the JSON file.

    Args:
        plan: what was measured.
        entries: one per set of voxels.
        racing: of `racing_rows`.
        other_load: part of the cores that others used.
        machine: that it was measured on.
        chosen: name of the set that the bars are held against.
    """
    from mmdeploy_ext.benchmark import memory, sparse
    from mmdeploy_ext.benchmark.machine import QUIET_SHARE

    deployment = plan.deployment
    scenes = [entry for entry in entries if not entry['real']]
    growth = sparse.growth(scenes)
    exports = sparse.export_seconds(deployment)
    entry = next(entry for entry in entries if entry['name'] == chosen)
    notes = []
    if other_load is not None and other_load > QUIET_SHARE:
        notes.append(
            f'other processes used {other_load:.0%} of the cores meanwhile: measure again when it is quiet'
        )
    return dict(
        tool='benchmark', config=deployment.config, checkpoint=deployment.checkpoint,
        cfg_options=deployment.cfg_options, family=deployment.family.name,
        config_sha256=deployment.config_sha256, checkpoint_sha256=deployment.checkpoint_sha256,
        grid='x'.join(map(str, plan.graph.spatial_shape)), threads=list(plan.threads),
        machine=machine, memory_method=memory.HOW, other_load=other_load, sets=entries, growth=growth,
        work_growth=sparse.work_growth(scenes),
        racing=racing, export_s=exports, bars=sparse.bar_rows(entry, growth, exports), notes=notes,
    )  # fmt: skip
