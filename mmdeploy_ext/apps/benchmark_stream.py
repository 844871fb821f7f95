"""`benchmark.py` for streaming models."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.apps.options import refuse_given
from mmdeploy_ext.benchmark.engines import KINDS
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError, after_weights

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.runtime.frames import Frame

IMAGE_OPTIONS = (
    'shape',
    'samples_per_gpu',
    'images',
    'prepared',
    'fuse_conv_bn',
    'profile',
    'launcher',
    'repeat_num',
    'log_interval',
)
"""Options of benchmark.py that streaming models do not have."""
DRIVE_FRAMES = 24
"""Frames of the synthetic drive; more rounds drive it again."""


def run_streaming(
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
    engines: Sequence[str],
    register: Callable[[], None],
    publish: Callable[[argparse.Namespace, dict[str, Any]], None],
) -> int:
    """Measure PyTorch and the contracts, interleaved, and report."""
    import cv2
    import torch

    from mmdeploy_ext.benchmark import streaming
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.deploy import deployment as deploy
    from mmdeploy_ext.deploy.sequence_files import read_files
    from mmdeploy_ext.families.base import find_family
    from mmdeploy_ext.proof.inputs.synthetic_drive import synthetic_drive

    family = find_family(load_config(args.config, shared.parse_cfg_options(args.cfg_options)))
    if not family.memory:
        raise UsageError(f'{args.config}: family {family.name!r} has no memory; a stream is measured here')
    refuse_given(args, parser, IMAGE_OPTIONS, 'streaming models do not have it')
    unknown = [name for name in engines if name not in KINDS['stream']]
    if unknown:
        known = ', '.join(KINDS['stream'])
        raise UsageError(f'--engines {",".join(unknown)}: streaming models run on {known}')
    found = {path: read_files(path).metadata for path in args.onnx}
    labels = [metadata.options.get('contract', metadata.family) for metadata in found.values()]
    files = dict(zip(labels if len(set(labels)) == len(labels) else list(found), found, strict=True))
    threads = args.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    deployment = deploy.load(
        args.config, args.checkpoint, shared.parse_cfg_options(args.cfg_options), args.device
    )
    with after_weights(), tempfile.TemporaryDirectory(prefix='mm2onnx_benchmark_') as folder:
        if not files and set(engines) != {'torch'}:
            files = streaming.export_contracts(deployment, folder)
        frames = rounds_of(list(synthetic_drive(DRIVE_FRAMES, deployment.rule, scenes=1)), args)
        plan = streaming.StreamPlan(args, deployment, threads, frames, files, register, engines)
        publish(args, _run_plan(plan))
    return 0


def rounds_of(drive: list[Frame], args: argparse.Namespace) -> list[Frame]:
    """Return one frame per round, in the order of `measure.interleave`: the warm-up is at the end."""
    count = args.warmup + args.max_iter + args.spare_rounds
    frames = [
        dataclasses.replace(drive[index % len(drive)], scene_token=f'drive {index // len(drive)}')
        for index in range(count)
    ]
    return [*frames[args.warmup :], *frames[: args.warmup]]


def _run_plan(plan: Any) -> dict[str, Any]:
    """Measure memory, then times; returns the content of the JSON file."""
    from rich.progress import track

    from mmdeploy_ext.benchmark import measure, memory, streaming

    with streaming.open_contenders(plan) as opened:
        memories = {}
        if not plan.args.no_memory and memory.is_supported():
            memories = streaming.measure_memory(plan, opened)
        rounds = plan.args.max_iter
        progress = iter(track(range(rounds), 'measuring', console=cli.stderr(), transient=True))
        runs = measure.interleave(
            opened,
            plan.frames,
            rounds,
            plan.args.warmup,
            on_round=lambda index, runs: next(progress, None),
            spare=plan.args.spare_rounds,
            seconds=plan.args.max_seconds,
        )
    return streaming.make_result(plan, opened, runs, memories)
