"""The benchmark of sparse backbones: spconv against portable ONNX on CPU engines, part by part, size by size.

A contender's time begins with voxels and ends with the dense map. Parts: 'rulebook' is which voxel meets
which weight, 'network' all else. What voxelises the points is measured beside it.
"""

from __future__ import annotations

import functools
import importlib
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.benchmark import measure, memory
from mmdeploy_ext.benchmark import sparse_figures as figures
from mmdeploy_ext.benchmark.clocks import PartClock
from mmdeploy_ext.benchmark.machine import cores
from mmdeploy_ext.benchmark.measure import Contender, Run
from mmdeploy_ext.benchmark.plan import Plan, busy
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.engines.openvino import compiled
from mmdeploy_ext.engines.registry import BASELINE, DEFAULT
from mmdeploy_ext.exporting import sparse_backbone as deploy
from mmdeploy_ext.exporting.deployment import load
from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.families.parts.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.graph.io.files import read as load_model
from mmdeploy_ext.proving.inputs.voxel_sets import VoxelSet, in_order, sweep_sets
from mmdeploy_ext.sparse import portable
from mmdeploy_ext.sparse.fold import fold
from mmdeploy_ext.sparse.plan import Plan as RulebookPlan
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.benchmark.plan import Runs
    from mmdeploy_ext.exporting.deployment import Deployment

DEFAULT_SIZES = (5000, 20000, 60000, 120000)
THREADS = (1, 2)


class SparsePlan(Plan):
    """Sets of voxels, one group each: generated scenes, smallest first, then real sweeps."""

    kind = 'sparse'
    models = 'sparse LiDAR backbones'
    foreign = (
        'shape', 'samples_per_gpu', 'images', 'fuse_conv_bn', 'profile', 'launcher', 'prepared', 'device',
    )  # fmt: skip
    seconds = 45.0

    def load(self) -> None:
        """See `Plan.load`."""
        args = self.args
        self.threads = (args.threads,) if args.threads else THREADS
        if args.voxels is not None and min(args.voxels) < 1:
            raise UsageError(f'--voxels {" ".join(map(str, args.voxels))}: expected positive numbers')
        if len(args.onnx) > 1:
            raise UsageError(f'--onnx {" ".join(args.onnx)}: sparse backbones take one portable file')
        for path in args.onnx:
            ScnOnnx(path, threads=1).close()  # refuses what is no portable file
        self.files = dict(portable=args.onnx[0]) if args.onnx else {}
        self.sweeps: list[VoxelSet] = []

        def check(cfg: Any, family: Any, model: Any) -> None:
            rule, settings = family.preprocess_rule(cfg), family.settings(cfg, model)
            for path in args.sweep:
                self.sweeps += sweep_sets(path, rule, cfg, settings, 1)

        self.deployment = load(
            args.config, args.checkpoint, args.cfg_options, before_weights=check, product=BACKBONE
        )
        self.graph = fold(deploy.trace(self.deployment), 'fp32')
        self.scenes = synthetic_sets(self.deployment, args.voxels or DEFAULT_SIZES)

    @property
    def chosen(self) -> VoxelSet:
        """The set that memory and bars are about: the real sweep where there is one."""
        return self.sweeps[0] if self.sweeps else self.scenes[-1]

    def groups(self) -> list[list[VoxelSet]]:
        """See `Plan.groups`."""
        return [[voxels] for voxels in (*self.scenes, *self.sweeps)]

    def export(self, folder: str) -> dict[str, str]:
        """See `Plan.export`: the graph that the engines run."""
        path = str(Path(folder) / 'portable.onnx')
        options = self.deployment.family.choose(target='portable', order=self.graph.order)
        deploy.write_file(self.deployment, self.graph, options, path)
        return dict(portable=path)

    def torch_contenders(self, stack: contextlib.ExitStack) -> list[Contender]:
        """See `Plan.torch_contenders`: the unpatched model on spconv, one thread, its only correct mode."""
        family, model = self.deployment.family, self.deployment.model
        ops = importlib.import_module('spconv.pytorch.ops')
        clock = stack.enter_context(PartClock(dict(rulebook=[(ops, 'get_indice_pairs')])))

        def run(voxels: VoxelSet) -> Run:
            before, start = dict(clock.seconds), time.perf_counter()
            family.run_encoder(model, voxels.features, voxels.coordinates)
            return _run(voxels, time.perf_counter() - start, clock.since(before)['rulebook'])

        return [Contender(BASELINE, BASELINE, '', run, threads=1)]

    def file_contenders(
        self, stack: contextlib.ExitStack, engine: str, label: str, path: str
    ) -> list[Contender]:
        """See `Plan.file_contenders`: one for each number of threads."""
        found = []
        for threads in self.threads:
            run = STEPS[engine](path, threads, self.graph.order)
            name = f'{engine}, {threads} thread{"s" * (threads > 1)}'
            found.append(Contender(name, engine, label, run, path, threads))
        return found

    def memory_call(self, contender: Contender) -> Callable[[], tuple[int, object]]:
        """See `Plan.memory_call`."""
        if contender.engine == BASELINE:
            return functools.partial(run_spconv, self.source(), self.chosen)
        given = contender.engine, contender.file, contender.threads, self.graph.order, self.chosen
        return functools.partial(run_portable, *given)

    def facts(self) -> dict[str, Any]:
        """See `Plan.facts`."""
        return dict(grid='x'.join(map(str, self.graph.spatial_shape)), threads=list(self.threads))

    def complete(self, row: dict[str, Any], contender: Contender, runs: Sequence[Run]) -> None:
        """See `Plan.complete`: parts and threads, and nothing that backbones do not have."""
        parts = runs[0].parts_s
        row['parts_ms'] = {part: measure.milliseconds(run.parts_s[part] for run in runs) for part in parts}
        row['threads'] = contender.threads
        for name in ('images_per_s', 'detections_per_image', 'postprocess_ms', 'samples_ms'):
            row.pop(name)

    def result(
        self, contenders: Sequence[Contender], runs: Sequence[Runs], memories: Mapping[str, Any]
    ) -> dict[str, Any]:
        """See `Plan.result`: an entry per set instead of one table."""
        roofline = {threads: figures.gemm_flops(threads) for threads in {1, *self.threads}}
        entries = []
        for (voxels,), mine in zip(self.groups(), runs, strict=True):
            rows = self.rows(contenders, mine, memories if voxels is self.chosen else {})
            work = figures.pair_flops(self.graph, voxels.coordinates)
            figures.add_roofline(rows, work['gflop'], roofline)
            entries.append(
                dict(
                    name=voxels.name, voxels=len(voxels.features), **work, contenders=rows,
                    rounds=len(next(iter(mine.values()))), real=any(voxels is one for one in self.sweeps),
                    voxelise_ms=figures.voxelise_ms(self.deployment.rule, voxels),
                )
            )  # fmt: skip
        generated = [entry for entry in entries if not entry['real']]
        growth, exports = figures.growth(generated), export_seconds(self.deployment)
        chosen = next(entry for entry in entries if entry['name'] == self.chosen.name)
        racing = None
        if BASELINE in self.engines and not self.args.no_racing and cores() > 1:
            first = self.sweeps[0] if self.sweeps else self.scenes[0]
            racing = figures.racing_rows(self.deployment, first, cores())
        return dict(
            self.common_facts(runs), **self.facts(), sets=entries, growth=growth, racing=racing,
            work_growth=figures.work_growth(generated), export_s=exports, bars_of=figures.BARS_OF,
            bars=figures.held_to(chosen, growth, exports), notes=busy(self.other_load(runs)),
        )  # fmt: skip


def synthetic_sets(deployment: Deployment, sizes: Sequence[int]) -> list[VoxelSet]:
    """Return scenes of so many voxels, with random features."""
    settings, found = deployment.settings, []
    for size in sorted(set(sizes)):
        coordinates = figures.surfaces(settings.spatial_shape, settings.order, size, seed=size)
        shape = len(coordinates), settings.in_channels
        features = np.random.default_rng(size).standard_normal(shape).astype(np.float32)
        found.append(VoxelSet(f'synthetic {len(coordinates)}', features, coordinates))
    return found


def export_seconds(deployment: Deployment) -> dict[str, float]:
    """Return the seconds that an export to each target takes, tracing included."""
    found = {}
    with tempfile.TemporaryDirectory(prefix='mm2onnx_benchmark_') as folder:
        for target in deployment.family.options[0].choices:
            options = deployment.family.choose(target=target)
            _, seconds = deploy.export_file(deployment, options, str(Path(folder) / 'x.onnx'))
            found[target] = round(seconds, 3)
    return found


def _run(voxels: VoxelSet, total: float, rulebook: float, network: float | None = None) -> Run:
    network = total - rulebook if network is None else network
    return Run(total, network, len(voxels.features), parts_s=dict(rulebook=rulebook, network=network))


def onnxruntime_step(path: str, threads: int, order: str) -> Callable[[VoxelSet], Run]:
    """Return what a user of the portable file runs: `ScnOnnx`; `order` is that of the voxels."""
    engine = ScnOnnx(path, threads=threads)

    def run(voxels: VoxelSet) -> Run:
        start = time.perf_counter()
        engine.step(voxels=(voxels.features, in_order(voxels.coordinates, engine.order == order)))
        total = time.perf_counter() - start
        return _run(voxels, total, *(engine.milliseconds[part] / 1e3 for part in ('rulebook', 'network')))

    return run


def openvino_step(path: str, threads: int, order: str) -> Callable[[VoxelSet], Run]:
    """Return the portable file on OpenVINO, with the same rulebook."""
    props = {entry.key: entry.value for entry in load_model(path).metadata_props}
    facts = json.loads(props[portable.FACTS])
    plan, same = RulebookPlan.from_json(facts['plan']), facts['order'] == order
    model = compiled(path, threads)

    def run(voxels: VoxelSet) -> Run:
        start = time.perf_counter()
        rulebook = build(plan, in_order(voxels.coordinates, same), threads)
        feeds = portable.feeds(plan, rulebook, facts['form'], threads)
        feeds = {portable.VOXELS: voxels.features, **feeds}
        middle = time.perf_counter()
        model(feeds)
        return _run(voxels, time.perf_counter() - start, middle - start)

    return run


STEPS = {DEFAULT.name: onnxruntime_step, 'openvino': openvino_step}
"""Engine -> how it runs a portable file, with voxels in and the rulebook's time told."""


def run_spconv(source: memory.Source, voxels: VoxelSet) -> tuple[int, object]:
    """Run the model in a process of its own; see `memory.measure`."""
    source.prepare()
    loaded = load(source.config, source.checkpoint, source.cfg_options, product=BACKBONE)
    family, model = loaded.family, loaded.model
    family.run_encoder(model, voxels.features[:1], voxels.coordinates[:1])
    before = memory.start_with(model)
    for _ in range(memory.RUNS):
        family.run_encoder(model, voxels.features, voxels.coordinates)
    return before, loaded


def run_portable(engine: str, path: str, threads: int, order: str, voxels: VoxelSet) -> tuple[int, object]:
    """Run a portable file in a process of its own; see `memory.measure`."""
    importlib.import_module(engine)
    before, run = memory.start(), STEPS[engine](path, threads, order)
    for _ in range(memory.RUNS):
        run(voxels)
    return before, run
