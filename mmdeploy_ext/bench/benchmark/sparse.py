"""Sparse backbones: spconv against portable ONNX on CPU engines, for several scenes."""

from __future__ import annotations

import importlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.bench.benchmark.base import Benchmark
from mmdeploy_ext.bench.benchmark.measure import Contender, PartClock, Run
from mmdeploy_ext.engines.openvino import compiled
from mmdeploy_ext.engines.registry import BASELINE, DEFAULT
from mmdeploy_ext.exporting.sparse.fold import fold
from mmdeploy_ext.families import backbone_files as deploy
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.graphs.io.files import read as load_model
from mmdeploy_ext.proving.inputs import VoxelSet, in_order, sweep_sets
from mmdeploy_ext.runtime.sparse import buckets
from mmdeploy_ext.runtime.sparse.plan import PortableFacts
from mmdeploy_ext.runtime.sparse.rulebook import build
from mmdeploy_ext.runtime.sparse_encoder import ScnOnnx
from mmdeploy_ext.spec.metadata import PREFIX, read_entry

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.runtime.sparse.ir import Triple

DEFAULT_SIZES = (5000, 20000, 60000, 120000)
"""Numbers of voxels of the generated scenes."""
THREADS = (1, 2)
FILLED = 0.45
"""Share of the ground's cells with a voxel."""


class SparseBenchmark(Benchmark):
    """Generated scenes, smallest first, then real sweeps; one group each.

    A sample is a `VoxelSet`: features (N, C) float32, and coordinates (N, 4) int32, sample 0 first, axes in
    the order of `graph`.

    Attributes:
        graph: folded in float32.
        scenes, sweeps: generated and real sets of voxels.
    """

    kind = 'sparse'
    models = 'sparse LiDAR backbones'
    foreign = ('shape', 'samples_per_gpu', 'images', 'fuse_conv_bn', 'launcher', 'device')
    seconds = 45.0

    def load(self) -> None:
        args = self.args
        self.threads = (args.threads,) if args.threads else THREADS
        if args.voxels is not None and min(args.voxels) < 1:
            raise UsageError(f'--voxels {" ".join(map(str, args.voxels))}: expected positive numbers')
        if len(args.onnx) > 1:
            raise UsageError(f'--onnx {" ".join(args.onnx)}: sparse backbones need one portable file')
        for path in args.onnx:
            ScnOnnx(path, threads=1).close()  # raises an error for other files
        self.files = dict(portable=args.onnx[0]) if args.onnx else {}
        self.sweeps: list[VoxelSet] = []
        self.detector = detectors.read_config(
            args.config, args.checkpoint, args.cfg_options, product=BACKBONE
        )
        deploy.build(self.detector)
        rule, cfg, settings = self.detector.rule, self.detector.cfg, self.detector.settings
        for path in args.sweep:
            self.sweeps += sweep_sets(path, rule, cfg, settings, limit=1)
        deploy.load_weights(self.detector)
        self.graph = fold(deploy.trace(self.detector), 'fp32')
        self.scenes = synthetic_sets(self.detector, args.voxels or DEFAULT_SIZES)

    def groups(self) -> dict[str, list[VoxelSet]]:
        return {voxels.name: [voxels] for voxels in (*self.scenes, *self.sweeps)}

    def export(self, folder: str) -> dict[str, str]:
        path = str(Path(folder) / 'portable.onnx')
        options = self.detector.family.choose(target='portable', order=self.graph.order)
        deploy.write_file(self.detector, self.graph, options, path)
        return dict(portable=path)

    def torch_contenders(self, stack: contextlib.ExitStack) -> list[Contender]:
        """The unpatched model on spconv with one thread, its only correct mode."""
        family, model = self.detector.family, self.detector.model
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
        """A contender per number of threads."""
        contenders = []
        for threads in self.threads:
            run = STEPS[engine](path, threads, self.graph.order)
            contenders.append(
                Contender(f'{engine}, {thread_count(threads)}', engine, label, run, path, threads)
            )
        return contenders

    def input_shape(self) -> str:
        return f'grid {"x".join(map(str, self.graph.spatial_shape))}'


def thread_count(threads: int) -> str:
    return f'{threads} thread{"" if threads == 1 else "s"}'


def ground(spatial_shape: Triple, order: str, count: int, seed: int = 0) -> np.ndarray:
    """Voxels (count, 4) int32 of bumpy ground around a corner of the grid, in random order.

    A small grid gets several layers of ground; a grid without room for `count` gives fewer.
    """
    width, depth, height = spatial_shape if order == 'xyz' else spatial_shape[::-1]
    rng, side = np.random.default_rng(seed), math.ceil(math.sqrt(count / FILLED))
    width = min(side, width)
    depth = min(math.ceil(count / (FILLED * width)), depth)
    layers = min(math.ceil(count / (FILLED * width * depth)), max(height // 2, 1))
    cells = width * depth * layers
    chosen = rng.choice(cells, min(count, math.ceil(FILLED * cells)), replace=False)
    layer, x, y = np.unravel_index(chosen, (layers, width, depth))
    axes = np.stack([x, y, 2 * layer + rng.integers(0, 2, len(chosen))], 1)
    if order == 'zyx':
        axes = axes[:, ::-1]
    return np.pad(axes, ((0, 0), (1, 0))).astype(np.int32)


def synthetic_sets(detector: Detector, sizes: Sequence[int]) -> list[VoxelSet]:
    """A set of voxels with random features per size, smallest first."""
    settings, sets = detector.settings, {}
    for count in sorted(set(sizes)):
        coordinates = ground(settings.spatial_shape, settings.order, count, seed=count)
        shape = len(coordinates), settings.in_channels
        features = np.random.default_rng(count).standard_normal(shape).astype(np.float32)
        sets.setdefault(len(features), VoxelSet(f'synthetic {len(coordinates)}', features, coordinates))
    return list(sets.values())


def _run(voxels: VoxelSet, total_s: float, rulebook_s: float, network_s: float) -> Run:
    return Run(total_s, network_s, len(voxels.features), parts_s=dict(rulebook=rulebook_s, network=network_s))


def onnxruntime_step(path: str, threads: int, order: str) -> Callable[[VoxelSet], Run]:
    """Function that runs a portable file on ONNX Runtime; `order` is the axis order of voxels."""
    engine = ScnOnnx(path, threads=threads)

    def run(voxels: VoxelSet) -> Run:
        start = time.perf_counter()
        engine.step(voxels=(voxels.features, in_order(voxels.coordinates, engine.order == order)))
        total_s, parts_ms = time.perf_counter() - start, engine.milliseconds
        return _run(voxels, total_s, parts_ms['rulebook'] / 1e3, parts_ms['network'] / 1e3)

    return run


def openvino_step(path: str, threads: int, order: str) -> Callable[[VoxelSet], Run]:
    """Function that runs a portable file on OpenVINO; `order` is the axis order of voxels."""
    props = {entry.key: entry.value for entry in load_model(path).metadata_props}
    facts = read_entry(props, buckets.FACTS.removeprefix(PREFIX), path, PortableFacts)
    plan, same_order = facts.plan, facts.order == order
    model = compiled(path, threads)

    def run(voxels: VoxelSet) -> Run:
        start = time.perf_counter()
        rulebook = build(plan, in_order(voxels.coordinates, same_order), threads)
        feeds = buckets.feeds(plan, rulebook, facts.form, threads)
        feeds = {buckets.VOXELS: voxels.features, **feeds}
        rulebook_end = time.perf_counter()
        model(feeds)
        end = time.perf_counter()
        return _run(voxels, end - start, rulebook_end - start, end - rulebook_end)

    return run


STEPS = {DEFAULT.name: onnxruntime_step, 'openvino': openvino_step}
