"""Who runs a sparse backbone in a benchmark: spconv, and the portable file on each engine; see `sparse`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.benchmark import measure
from mmdeploy_ext.benchmark.measure import Contender, Run
from mmdeploy_ext.sparse import portable
from mmdeploy_ext.sparse.plan import Plan
from mmdeploy_ext.sparse.rulebook import build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mmdeploy_ext.deploy.sparse import SparseDeployment
    from mmdeploy_ext.proof.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.sparse.ir import SparseGraph

RACING_RUNS = 3


@dataclasses.dataclass(frozen=True)
class SparsePlan:
    """What one run of the tool measures.

    Attributes:
        deployment: the model.
        graph: folded, in the model's own order.
        sets: voxels, smallest first; real sweeps among them.
        threads: of the engines on trial.
        engines: names, 'torch' (spconv), 'onnxruntime', 'openvino'.
        rounds: at most.
        warmup: rounds before.
        register: imports the projects, for child processes.
    """

    deployment: SparseDeployment
    graph: SparseGraph
    sets: Sequence[VoxelSet]
    threads: Sequence[int]
    engines: Sequence[str]
    rounds: int
    warmup: int
    register: Callable[[], None]


# ---- contenders


class PairClock:
    """Context manager that adds up the time of spconv's `get_indice_pairs`, its rulebook."""

    seconds = 0.0

    def __enter__(self) -> PairClock:
        """Put the clock in."""
        ops = importlib.import_module('spconv.pytorch.ops')
        self._ops, self._original = ops, ops.get_indice_pairs

        @functools.wraps(self._original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return self._original(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        ops.get_indice_pairs = timed
        return self

    def __exit__(self, *_: object) -> None:
        """Take it out again."""
        self._ops.get_indice_pairs = self._original


def spconv_contender(deployment: SparseDeployment, clock: PairClock) -> Contender:
    """Return the unpatched model on spconv, one thread: its only correct mode on a CPU."""
    family, model = deployment.family, deployment.model

    def run(voxels: VoxelSet) -> Run:
        before, start = clock.seconds, time.perf_counter()
        family.run_encoder(model, voxels.features, voxels.coordinates)
        total = time.perf_counter() - start
        rulebook = clock.seconds - before
        parts = dict(rulebook=rulebook, network=total - rulebook)
        return Run(total, total - rulebook, len(voxels.features), parts_s=parts)

    return Contender(measure.BASELINE, 'torch', '', run)


def onnxruntime_contender(path: str, threads: int, order: str) -> Contender:
    """Return what a user of the portable file runs: `ScnOnnx`; `order` is that of the voxels."""
    from mmdeploy_ext.runtime.scn.model import ScnOnnx

    engine = ScnOnnx(path, threads=threads)

    def run(voxels: VoxelSet) -> Run:
        start = time.perf_counter()
        engine.step(voxels=(voxels.features, voxels.in_order(engine.order == order)))
        total = time.perf_counter() - start
        parts = {part: engine.milliseconds[part] / 1e3 for part in ('rulebook', 'network')}
        return Run(total, parts['network'], len(voxels.features), parts_s=parts)

    return Contender(title_of('onnxruntime', threads), 'onnxruntime', 'portable', run, path)


def openvino_contender(path: str, threads: int, order: str) -> Contender:
    """Return the portable file on OpenVINO, with the same rulebook."""
    import openvino

    from mmdeploy_ext.sparse.contract import load_model

    props = {entry.key: entry.value for entry in load_model(path).metadata_props}
    facts = json.loads(props[portable.FACTS])
    plan, same = Plan.from_json(facts['plan']), facts['order'] == order
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': threads}
    compiled = openvino.Core().compile_model(path, 'CPU', settings)

    def run(voxels: VoxelSet) -> Run:
        start = time.perf_counter()
        rulebook = build(plan, voxels.in_order(same), threads)
        feeds = {
            portable.VOXELS: voxels.features,
            **portable.feeds(plan, rulebook, facts['form'], threads),
        }
        middle = time.perf_counter()
        compiled(feeds)
        end = time.perf_counter()
        parts = dict(rulebook=middle - start, network=end - middle)
        return Run(end - start, end - middle, len(voxels.features), parts_s=parts)

    return Contender(title_of('openvino', threads), 'openvino', 'portable', run, path)


CONTENDERS = dict(onnxruntime=onnxruntime_contender, openvino=openvino_contender)


def title_of(engine: str, threads: int) -> str:
    """Return the name of a contender."""
    return f'{engine}, {threads} thread{"s" * (threads > 1)}'


@contextlib.contextmanager
def open_contenders(plan: SparsePlan, path: str) -> Iterator[list[Contender]]:
    """Open every engine; spconv first."""
    found = []
    with PairClock() as clock:
        if 'torch' in plan.engines:
            found.append(spconv_contender(plan.deployment, clock))
        for engine in (name for name in plan.engines if name != 'torch'):
            for threads in plan.threads:
                found.append(CONTENDERS[engine](path, threads, plan.graph.order))
        yield found


def racing_rows(plan: SparsePlan, voxels: VoxelSet, cores: int) -> dict[str, Any]:
    """Run spconv with all threads, which is wrong, and say how wrong.

    Returns:
        Median ms, largest difference from one thread over the largest value, rounds.
    """
    import torch
    from threadpoolctl import threadpool_limits

    from mmdeploy_ext.stack import compat, compat_sparse
    from mmdeploy_ext.stack.import_hook import patched

    family, model = plan.deployment.family, plan.deployment.model
    right = family.run_encoder(model, voxels.features, voxels.coordinates)
    seconds, worst, before = [], 0.0, torch.get_num_threads()
    free = dict(single_thread=contextlib.nullcontext)
    try:
        torch.set_num_threads(cores)
        with (
            patched(compat, **free),
            patched(compat_sparse, _one_thread=contextlib.nullcontext),
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
