"""The benchmark of sparse backbones: spconv against portable ONNX on CPU engines, for several scenes.

A contender's time begins with voxels and ends with the dense map. Its parts are 'rulebook', which finds the
pairs of voxels and weights, and 'network'. The voxelisation of points is measured separately.
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
from mmdeploy_ext.benchmark.base import Benchmark, load_notes
from mmdeploy_ext.benchmark.clocks import PartClock
from mmdeploy_ext.benchmark.machine import cores
from mmdeploy_ext.benchmark.measure import Contender, Run
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.engines.openvino import compiled
from mmdeploy_ext.engines.registry import BASELINE, DEFAULT
from mmdeploy_ext.families import backbone_files as deploy
from mmdeploy_ext.families import model as models
from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.graph.io.files import read as load_model
from mmdeploy_ext.proving.inputs.voxel_sets import VoxelSet, in_order, sweep_sets
from mmdeploy_ext.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.sparse import buckets
from mmdeploy_ext.sparse.fold import fold
from mmdeploy_ext.sparse.plan import Plan
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.benchmark.base import Runs
    from mmdeploy_ext.families.model import Model

DEFAULT_SIZES = (5000, 20000, 60000, 120000)
"""Numbers of voxels of the generated scenes."""
THREADS = (1, 2)
"""Numbers of threads on which files are measured if the user gives none."""


class SparseBenchmark(Benchmark):
    """Benchmark on sets of voxels, one group each: generated scenes, smallest first, then real sweeps.

    A sample is a `VoxelSet`: features (N, C) float32, and coordinates (N, 4) int32, which are the index in
    the batch, 0, and the axes in the order of `graph`.

    Attributes:
        graph: the graph of the model, folded in float32.
        scenes, sweeps: the generated and the real sets of voxels.
    """

    kind = 'sparse'
    models = 'sparse LiDAR backbones'
    foreign = (
        'shape', 'samples_per_gpu', 'images', 'fuse_conv_bn', 'profile', 'launcher', 'prepared', 'device',
    )  # fmt: skip
    seconds = 45.0

    def load(self) -> None:
        """Load the model, trace its graph, and make the sets of voxels.

        UsageError: options that are out of range, or several files. ModelFileError: a file that is no
        portable one of a sparse backbone. DataError: a sweep that cannot be read.
        """
        args = self.args
        self.threads = (args.threads,) if args.threads else THREADS
        if args.voxels is not None and min(args.voxels) < 1:
            raise UsageError(f'--voxels {" ".join(map(str, args.voxels))}: expected positive numbers')
        if len(args.onnx) > 1:
            raise UsageError(f'--onnx {" ".join(args.onnx)}: sparse backbones take one portable file')
        for path in args.onnx:
            ScnOnnx(path, threads=1).close()  # raises an error for other files
        self.files = dict(portable=args.onnx[0]) if args.onnx else {}
        self.sweeps: list[VoxelSet] = []
        self.deployment = models.read_config(args.config, args.checkpoint, args.cfg_options, product=BACKBONE)
        models.build(self.deployment)
        rule, cfg, settings = self.deployment.rule, self.deployment.cfg, self.deployment.settings
        for path in args.sweep:
            self.sweeps += sweep_sets(path, rule, cfg, settings, limit=1)
        models.load_weights(self.deployment)
        self.graph = fold(deploy.trace(self.deployment), 'fp32')
        self.scenes = synthetic_sets(self.deployment, args.voxels or DEFAULT_SIZES)

    @property
    def main_set(self) -> VoxelSet:
        """The set of the bars of time and of memory: the first real sweep, else the largest scene."""
        return self.sweeps[0] if self.sweeps else self.scenes[-1]

    def groups(self) -> list[list[VoxelSet]]:
        """Return a group for each set of voxels."""
        return [[voxels] for voxels in (*self.scenes, *self.sweeps)]

    def export(self, folder: str) -> dict[str, str]:
        """Export the portable file, in standard operators, to a folder; return its label -> path."""
        path = str(Path(folder) / 'portable.onnx')
        options = self.deployment.family.choose(target='portable', order=self.graph.order)
        deploy.write_file(self.deployment, self.graph, options, path)
        return dict(portable=path)

    def torch_contenders(self, stack: contextlib.ExitStack) -> list[Contender]:
        """Return the unpatched model on spconv with one thread, its only correct mode.

        Until `stack` closes, the function of spconv that finds the pairs is timed.
        """
        family, model = self.deployment.family, self.deployment.model
        ops = importlib.import_module('spconv.pytorch.ops')
        clock = stack.enter_context(PartClock(dict(rulebook=[(ops, 'get_indice_pairs')])))

        def run(voxels: VoxelSet) -> Run:
            before, start = dict(clock.seconds), time.perf_counter()
            family.run_encoder(model, voxels.features, voxels.coordinates)
            total_s, rulebook_s = time.perf_counter() - start, clock.since(before)['rulebook']
            return _run(voxels, total_s, rulebook_s, total_s - rulebook_s)

        return [Contender(BASELINE, BASELINE, '', run, threads=1)]

    def file_contenders(
        self, stack: contextlib.ExitStack, engine: str, label: str, path: str
    ) -> list[Contender]:
        """Return a contender for each number of threads, all of which have the file open from now on.

        `engine` is a key of `STEPS`, `label` and `path` are those of the portable file. `stack` is not used:
        it does not close them.
        """
        contenders = []
        for threads in self.threads:
            run = STEPS[engine](path, threads, self.graph.order)
            contenders.append(
                Contender(f'{engine}, {figures.thread_count(threads)}', engine, label, run, path, threads)
            )
        return contenders

    def memory_call(self, contender: Contender) -> Callable[[], tuple[int, object]]:
        """Return a function that runs the contender on the main set of voxels in a child process.

        It is `run_spconv` or `run_portable` with its arguments, which tell what it returns.
        """
        if contender.engine == BASELINE:
            return functools.partial(run_spconv, self.source(), self.main_set)
        file, threads = contender.file, contender.threads
        return functools.partial(
            run_portable, contender.engine, file, threads, self.graph.order, self.main_set
        )

    def facts(self) -> dict[str, Any]:
        """Return `grid`, voxels along each axis in the graph's order, and `threads`, the numbers of threads.

        A grid is a text, such as '41x1440x1440' of the order 'zyx'.
        """
        return dict(grid='x'.join(map(str, self.graph.spatial_shape)), threads=list(self.threads))

    def complete(self, row: dict[str, Any], contender: Contender, runs: Sequence[Run]) -> None:
        """Add `parts_ms`, part -> `spread` of its times in ms, and `threads` to a row of the JSON file.

        `images_per_s`, `detections_per_image`, `postprocess_ms` and `samples_ms` are removed from it. `runs`,
        at least one, are those of the `contender`.
        """
        parts = runs[0].parts_s
        row['parts_ms'] = {part: measure.milliseconds(run.parts_s[part] for run in runs) for part in parts}
        row['threads'] = contender.threads
        for name in ('images_per_s', 'detections_per_image', 'postprocess_ms', 'samples_ms'):
            row.pop(name)

    def result(
        self, contenders: Sequence[Contender], runs: Sequence[Runs], memories: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the content of the JSON file.

        Beside the common facts and those of `facts` it has `sets`, an entry for each set of voxels, `growth`
        and `work_growth`, exponents of time and of multiplications in the number of voxels over the generated
        sets, `racing`, how wrong spconv is with all threads (None if that was not measured), `export_s`,
        target -> seconds, `bars` and what they are of (`bars_of`), and `notes`. `runs` has those of each of
        `groups`, name of a contender -> its runs; `memories` are those of the main set alone.
        """
        roofline = {threads: figures.gemm_flops(threads) for threads in {1, *self.threads}}
        entries = []
        for (voxels,), set_runs in zip(self.groups(), runs, strict=True):
            rows = self.rows(contenders, set_runs, memories if voxels is self.main_set else {})
            work = figures.pair_flops(self.graph, voxels.coordinates)
            figures.add_roofline(rows, work['gflop'], roofline)
            entries.append(
                dict(
                    name=voxels.name,
                    voxels=len(voxels.features),
                    **work,
                    contenders=rows,
                    rounds=len(next(iter(set_runs.values()))),
                    real=any(voxels is sweep for sweep in self.sweeps),
                    voxelise_ms=figures.voxelise_ms(self.deployment.rule, voxels),
                )
            )
        generated = [entry for entry in entries if not entry['real']]
        growth, export_s = figures.growth(generated), export_seconds(self.deployment)
        main_entry = next(entry for entry in entries if entry['name'] == self.main_set.name)
        racing = None
        if BASELINE in self.engines and not self.args.no_racing and cores() > 1:
            voxels = self.sweeps[0] if self.sweeps else self.scenes[0]
            racing = figures.racing_spconv(self.deployment, voxels, cores())
        return dict(
            self.common_facts(runs),
            **self.facts(),
            sets=entries,
            growth=growth,
            racing=racing,
            work_growth=figures.work_growth(generated),
            export_s=export_s,
            bars_of=figures.BARS_OF,
            bars=figures.check_bars(main_entry, growth, export_s),
            notes=load_notes(self.other_load(runs)),
        )


def synthetic_sets(deployment: Model, sizes: Sequence[int]) -> list[VoxelSet]:
    """Return a set of voxels for each number of them in `sizes`, smallest first, with random features.

    The voxels are on pieces of ground and wall, in the grid of the encoder of the `deployment`. Numbers for
    which the grid is too small (`figures.surfaces`) have one set together.
    """
    settings, sets = deployment.settings, {}
    for count in sorted(set(sizes)):
        coordinates = figures.surfaces(settings.spatial_shape, settings.order, count, seed=count)
        shape = len(coordinates), settings.in_channels
        features = np.random.default_rng(count).standard_normal(shape).astype(np.float32)
        sets.setdefault(len(features), VoxelSet(f'synthetic {len(coordinates)}', features, coordinates))
    return list(sets.values())


def export_seconds(deployment: Model) -> dict[str, float]:
    """Return target of an export, 'libspconv' or 'portable', -> seconds that it takes, with tracing.

    `deployment` is a sparse backbone; the files are written to a temporary folder.
    """
    seconds_of = {}
    with tempfile.TemporaryDirectory(prefix='mm2onnx_benchmark_') as folder:
        for target in deployment.family.options[0].choices:
            options = deployment.family.choose(target=target)
            _, seconds = deploy.export_file(deployment, options, str(Path(folder) / 'x.onnx'))
            seconds_of[target] = round(seconds, 3)
    return seconds_of


def _run(voxels: VoxelSet, total_s: float, rulebook_s: float, network_s: float) -> Run:
    """Return a run with these times; the number of voxels stands for that of detections."""
    return Run(total_s, network_s, len(voxels.features), parts_s=dict(rulebook=rulebook_s, network=network_s))


def onnxruntime_step(path: str, threads: int, order: str) -> Callable[[VoxelSet], Run]:
    """Return a function that runs a portable file on ONNX Runtime by `ScnOnnx`.

    Args:
        path: path of the file.
        threads: number of threads of the engine.
        order: axis order of the coordinates of the voxels that the function takes, 'xyz' or 'zyx'.
    """
    engine = ScnOnnx(path, threads=threads)

    def run(voxels: VoxelSet) -> Run:
        start = time.perf_counter()
        engine.step(voxels=(voxels.features, in_order(voxels.coordinates, engine.order == order)))
        total_s, parts_ms = time.perf_counter() - start, engine.milliseconds
        return _run(voxels, total_s, parts_ms['rulebook'] / 1e3, parts_ms['network'] / 1e3)

    return run


def openvino_step(path: str, threads: int, order: str) -> Callable[[VoxelSet], Run]:
    """Return a function that runs a portable file on OpenVINO.

    `path`, `threads` and `order` are those of `onnxruntime_step`.
    """
    props = {entry.key: entry.value for entry in load_model(path).metadata_props}
    facts = json.loads(props[buckets.FACTS])
    plan, same_order = Plan.from_json(facts['plan']), facts['order'] == order
    model = compiled(path, threads)

    def run(voxels: VoxelSet) -> Run:
        start = time.perf_counter()
        rulebook = build(plan, in_order(voxels.coordinates, same_order), threads)
        feeds = buckets.feeds(plan, rulebook, facts['form'], threads)
        feeds = {buckets.VOXELS: voxels.features, **feeds}
        rulebook_end = time.perf_counter()
        model(feeds)
        end = time.perf_counter()
        return _run(voxels, end - start, rulebook_end - start, end - rulebook_end)

    return run


STEPS = {DEFAULT.name: onnxruntime_step, 'openvino': openvino_step}
"""Engine -> function that opens a portable file on it, and returns what runs a set of voxels.

The engines are 'onnxruntime' and 'openvino'.
"""


def run_spconv(source: memory.Source, voxels: VoxelSet) -> tuple[int, object]:
    """Run the model on a set of voxels in a child process, for `memory.measure`.

    `source` has the config and the checkpoint. Returned are the kB of the process after a first run on one
    voxel, which loads all libraries, less those of the weights, and the object that has to stay alive.
    """
    source.prepare()
    deployment = models.load(source.config, source.checkpoint, source.cfg_options, product=BACKBONE)
    family, model = deployment.family, deployment.model
    family.run_encoder(model, voxels.features[:1], voxels.coordinates[:1])
    baseline_kb = memory.reset_peak_with(model)
    for _ in range(memory.RUNS):
        family.run_encoder(model, voxels.features, voxels.coordinates)
    return baseline_kb, deployment


def run_portable(engine: str, path: str, threads: int, order: str, voxels: VoxelSet) -> tuple[int, object]:
    """Run a portable file on a set of voxels in a child process, for `memory.measure`.

    `engine` is a key of `STEPS`; `path`, `threads` and `order` are the arguments of its function. Returned
    are the kB of the process before the file is opened, and the object that has to stay alive.
    """
    importlib.import_module(engine)
    baseline_kb, run = memory.reset_peak(), STEPS[engine](path, threads, order)
    for _ in range(memory.RUNS):
        run(voxels)
    return baseline_kb, run
