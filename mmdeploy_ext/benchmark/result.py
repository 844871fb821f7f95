"""The content of a benchmark's JSON file."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.benchmark import measure, memory
from mmdeploy_ext.benchmark.machine import QUIET_SHARE, machine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.benchmark.contenders import Plan
    from mmdeploy_ext.benchmark.measure import Contender, Run
    from mmdeploy_ext.deploy.deployment import Deployment

COUNT_TOLERANCE = 0.02
"""Numbers of detections may differ by this part: a score beside the threshold falls on either side of it."""


def doubts(contenders: Sequence[dict[str, Any]], other_load: float | None = None) -> list[str]:
    """Say what makes the figures doubtful."""
    if other_load is not None and other_load > QUIET_SHARE:
        busy = f'other processes used {other_load:.0%} of the cores meanwhile: measure again when it is quiet'
        return [busy, *doubts(contenders)]
    counts = sorted(row['detections_per_image'] for row in contenders)
    if counts[-1] == 0:
        return ['nothing was found on these images: the cost of post-processing depends on what is found']
    if counts[-1] - counts[0] > COUNT_TOLERANCE * counts[-1]:
        return [
            f'the contenders found {counts[0]:g} to {counts[-1]:g} detections per image: are they the same '
            f'model? tools/deployment/verify.py tells'
        ]
    return []


def mean_load(runs: Mapping[str, Sequence[Run]]) -> float | None:
    """Return the part of the cores that other processes used, 0..1; None where not known."""
    loads = [run.other_load for mine in runs.values() for run in mine]
    return None if None in loads else round(statistics.mean(loads), 4)


def common_facts(
    deployment: Deployment, args: argparse.Namespace, threads: int, runs: Mapping[str, Sequence[Run]]
) -> dict[str, Any]:
    """Return what every benchmark's JSON file says about model, machine and rounds."""
    return dict(
        tool='benchmark',
        config=deployment.config,
        checkpoint=deployment.checkpoint,
        cfg_options=deployment.cfg_options,
        family=deployment.family.name,
        config_sha256=deployment.config_sha256,
        checkpoint_sha256=deployment.checkpoint_sha256,
        device=args.device,
        threads=threads,
        rounds=len(next(iter(runs.values()))),
        warmup=args.warmup,
        spare_rounds=args.spare_rounds,
        machine=machine(),
        memory_method=memory.HOW,
        preprocess_ms=None,
        profiles={},
    )


def make_result(
    plan: Plan,
    contenders: Sequence[Contender],
    runs: Mapping[str, Sequence[Run]],
    memories: Mapping[str, dict[str, float]],
) -> dict[str, Any]:
    """Return the content of the JSON file, all but pre-processing and profiles."""
    options = plan.options
    other_load = mean_load(runs) if plan.ranks.size == 1 else None
    rows = measure.summarise(contenders, runs, options.batch, plan.ranks.size)
    for row in rows:
        row['memory'] = memories.get(row['name'])
    return dict(
        common_facts(plan.deployment, plan.args, plan.threads, runs),
        input_shape=f'{options.batch}x3x{options.height}x{options.width}',
        images=len(plan.images),
        processes=plan.ranks.size,
        other_load=other_load,
        contenders=rows,
        forms=measure.compare_forms(contenders, runs),
        refused=plan.refused,
        notes=[*plan.notes, *doubts(rows, other_load)],
    )
