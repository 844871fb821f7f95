"""What a benchmark measures: files, model, engines and memory jobs, from the tool's arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import torch

from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.benchmark import measure, memory
from mmdeploy_ext.benchmark.engines import ENGINES
from mmdeploy_ext.benchmark.prepared import read_prepared
from mmdeploy_ext.contract.metadata import Metadata, read_metadata
from mmdeploy_ext.contract.options import IMAGE, Options
from mmdeploy_ext.core.errors import Mm2OnnxError, UsageError
from mmdeploy_ext.deploy import deployment as deploy
from mmdeploy_ext.exporting import fold

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from mmdeploy_ext.benchmark.measure import Contender
    from mmdeploy_ext.benchmark.ranks import Ranks
    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.inputs.pictures import PreparedImage

EXPORTED_FORMS = ('full', 'raw')
FUSED = 'torch fused'


def read_files(args: argparse.Namespace) -> tuple[list[Metadata], Options]:
    """Read what the given files say, and the options that they and the command line agree on.

    Raises:
        UsageError: a file of a fixed shape or batch does not take what the others or the options ask for.
    """
    height, width = (args.shape * 2)[:2] if args.shape else (0, 0)
    asked = [('--shape', (height, width))] if args.shape else []
    if args.prepared:
        asked.append((args.prepared, read_prepared(args.prepared).tensor.shape[1:]))
    batches = [('--samples-per-gpu', args.samples_per_gpu)] if args.samples_per_gpu else []
    found = [read_metadata(path) for path in args.onnx]
    for path, metadata in zip(args.onnx, found, strict=True):
        if not metadata.options['dynamic']:
            asked.append((path, (metadata.options['height'], metadata.options['width'])))
            if not metadata.options.get('dynamic_batch'):
                batches.append((path, metadata.options['batch']))
    for wishes in (asked, batches):
        for source, wish in wishes[1:]:
            if wish != wishes[0][1]:
                raise UsageError(
                    f'{source} takes {wish}, {wishes[0][0]} says {wishes[0][1]}: one run measures one size'
                )
    height, width = asked[0][1] if asked else (0, 0)
    return found, Options(IMAGE, height=height, width=width, batch=batches[0][1] if batches else 1)


def load_model(args: argparse.Namespace, found: Sequence[Metadata]) -> tuple[Deployment, list[str]]:
    """Load the model; returns it and what has to be said about the files."""
    written = found[0].options.get('cfg_options', {}) if found else {}

    def same_family(_cfg: object, family: Any, _model: object) -> None:
        for path, metadata in zip(args.onnx, found, strict=True):
            Metadata.require(metadata, path, family.name)

    deployment = deploy.load(
        args.config,
        args.checkpoint,
        {**written, **shared.parse_cfg_options(args.cfg_options)},
        args.device,
        same_family,
    )
    notes = [
        f'{path} was made from another checkpoint than {args.checkpoint}'
        for path, metadata in zip(args.onnx, found, strict=True)
        if metadata.checkpoint_sha256 != deployment.checkpoint_sha256
    ]
    if found:
        deployment.rule = deploy.file_rule(deployment.rule, found[0])
    return deployment, notes


def export_forms(deployment: Deployment, options: Options, image: PreparedImage, folder: str) -> list[str]:
    """Export the forms that are measured when no file was given."""
    paths = []
    for form in EXPORTED_FORMS:
        if form in deployment.family.forms:
            asked = deployment.family.choose(**{**options, 'form': form, 'opset': 0})
            chosen = deploy.resolve(asked, deployment.model, deployment.rule)
            path = str(Path(folder) / f'{form}.onnx')
            _, seconds = deploy.export_to_file(deployment, chosen, [image], path)
            print(f'{form}: exported in {seconds:.1f} s', file=sys.stderr)
            paths.append(path)
    return paths


def short_labels(paths: Sequence[str], found: Sequence[Metadata]) -> list[str]:
    """Return a short unique label per file: its form, else its name, else its path."""
    for labels in ([metadata.form for metadata in found], [Path(path).stem for path in paths]):
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in paths]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one run of the tool measures.

    Attributes:
        args: of the command line.
        ranks: the processes that measure.
        engines: names, 'torch' ...
        threads: of every engine.
        deployment: the model.
        options: height, width and batch of the input.
        images: BGR pictures; none where a prepared input is measured.
        files: label -> ONNX file.
        notes: what has to be said about the files.
        register: imports the projects, for child processes.
        prepared: the network input to measure on instead of pictures.
        refused: what an engine did not take, with `--skip-refused`: engine, label, file, reason.
    """

    args: argparse.Namespace
    ranks: Ranks
    engines: Sequence[str]
    threads: int
    deployment: Deployment
    options: Options
    images: Sequence[np.ndarray]
    files: dict[str, str]
    notes: list[str]
    register: Callable[[], None]
    prepared: PreparedImage | None = None
    refused: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def prepare(self, start: int = 0) -> list[PreparedImage]:
        """Return one batch, beginning with image `start`."""
        if self.prepared is not None:
            return [self.prepared] * self.options.batch
        size = self.options.height, self.options.width
        pictures = [self.images[(start + index) % len(self.images)] for index in range(self.options.batch)]
        return [deploy.prepare_fixed(self.deployment.rule, picture, *size) for picture in pictures]

    def batches(self, shift: int = 0) -> list[list[PreparedImage]]:
        """Return all images in batches, beginning with batch `shift`."""
        step = self.options.batch
        batches = [self.prepare(start) for start in range(0, max(len(self.images), step), step)]
        return [*batches[shift % len(batches) :], *batches[: shift % len(batches)]]


@contextlib.contextmanager
def make_plan(
    args: argparse.Namespace,
    ranks: Ranks,
    engines: Sequence[str],
    images: Sequence[np.ndarray],
    register: Callable[[], None],
) -> Iterator[Plan]:
    """Load the model, set the threads and, when no file was given, export to a folder that lives as long."""
    threads = args.threads or max(len(os.sched_getaffinity(0)) // ranks.size, 1)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    found, options = read_files(args)
    deployment, notes = load_model(args, found)
    options = deploy.resolve(options, deployment.model, deployment.rule)
    files = dict(zip(short_labels(args.onnx, found), args.onnx, strict=True))
    prepared = read_prepared(args.prepared) if args.prepared else None
    plan = Plan(args, ranks, engines, threads, deployment, options, images, files, notes, register, prepared)
    with tempfile.TemporaryDirectory(prefix='mm2onnx_benchmark_') as folder:
        if not files and set(engines) != {'torch'}:
            exported = (
                export_forms(deployment, options, plan.prepare()[0], folder) if ranks.rank == 0 else None
            )
            files.update((Path(path).stem, path) for path in ranks.gather(exported)[0])
        yield plan


@contextlib.contextmanager
def open_contenders(plan: Plan) -> Iterator[list[Contender]]:
    """Open every engine on every file, PyTorch first."""
    family, found = plan.deployment.family, []
    with contextlib.ExitStack() as stack:
        models = {measure.BASELINE: plan.deployment.model} if 'torch' in plan.engines else {}
        if plan.args.fuse_conv_bn and models:
            models[FUSED] = fold.fuse(plan.deployment.model)
        for name, model in models.items():
            clock = stack.enter_context(measure.NetworkClock(model))
            found.append(measure.torch_contender(family, model, name, clock))
        for engine in (name for name in plan.engines if name != 'torch'):
            for label, path in plan.files.items():
                found += _open_file(plan, stack, engine, label, path)
        measure.check_any(found, plan.refused)
        yield found


def _open_file(
    plan: Plan, stack: contextlib.ExitStack, engine: str, label: str, path: str
) -> list[Contender]:
    """Open an engine on a file; with `--skip-refused` an engine that cannot load or run it is noted."""
    try:
        backend = stack.enter_context(ENGINES[engine].open(path, plan.threads))
        contender = measure.backend_contender(plan.deployment.family, backend, engine, label, path)
        if plan.args.skip_refused:
            contender.run(plan.prepare())
    except Mm2OnnxError as error:
        if not plan.args.skip_refused:
            raise
        plan.refused.append(dict(engine=engine, label=label, file=path, reason=str(error)))
        return []
    return [contender]


def measure_memory(plan: Plan, contenders: Sequence[Contender]) -> dict[str, dict[str, float]]:
    """Measure every contender in a process of its own."""
    found, batch = {}, plan.prepare()
    model = memory.MemoryJob(
        plan.threads,
        plan.register,
        plan.deployment.config,
        plan.deployment.checkpoint,
        plan.deployment.cfg_options,
        batch,
    )
    feeds = plan.deployment.family.feeds(batch, True)
    for contender in contenders:
        if contender.engine == 'torch':
            job = dataclasses.replace(model, fuse=contender.name == FUSED)
        else:
            job = memory.MemoryJob(plan.threads, engine=contender.engine, file=contender.file, feeds=feeds)
        found[contender.name] = memory.measure(job)
    return found
