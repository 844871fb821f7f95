"""Models of single images: PyTorch against graphs of any form, on batches of pictures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import ModelFileError, UsageError
from mmdeploy_ext.bench.benchmark import base
from mmdeploy_ext.bench.benchmark.base import Benchmark, short_labels
from mmdeploy_ext.bench.benchmark.measure import FUSED, Contender, Run, interleave, summarise, timed
from mmdeploy_ext.engines.registry import BASELINE, ENGINES
from mmdeploy_ext.exporting.copy import fused
from mmdeploy_ext.families.detector import build, load_weights, prepare_fixed, read_config, resolve
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.proving.inputs import read_picture
from mmdeploy_ext.proving.parts.samples import run_test_path
from mmdeploy_ext.proving.parts.swap import open_sessions, swapped
from mmdeploy_ext.proving.provenance import refuse_other_settings
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.runtime.preprocess.pictures import list_images
from mmdeploy_ext.spec.metadata import Metadata, read_metadata
from mmdeploy_ext.spec.options import IMAGE, Options

if TYPE_CHECKING:
    import argparse
    import contextlib
    from collections.abc import Callable, Sequence

    import torch

    from mmdeploy_ext.engines import Backend
    from mmdeploy_ext.families.images import ImageFamily
    from mmdeploy_ext.proving.parts.export import ModelFactory
    from mmdeploy_ext.proving.parts.folder import CutFolder
    from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage


# Time of the test path in PyTorch, and with ONNX Runtime in place of the parts.


SWAPPED = 'parts in ONNX Runtime'


def time_parts(
    factory: ModelFactory, folder: CutFolder, samples: Sequence[Any], rounds: int, warmup: int
) -> list[dict[str, Any]]:
    """Run both in turns on the same samples; return a row of `summarise` for each, PyTorch first."""
    model, own_model, sessions = factory.make(), factory.make(), open_sessions(folder)

    def run_parts(sample: Any) -> None:
        with swapped(own_model, sessions):
            run_test_path(own_model, sample)

    contenders = [
        Contender(BASELINE, BASELINE, '', timed(lambda sample: run_test_path(model, sample))),
        Contender(SWAPPED, 'onnxruntime', 'parts', timed(run_parts), str(folder.path)),
    ]
    return summarise(contenders, interleave(contenders, samples, rounds, warmup), batch=1)


EXPORTED_FORMS = ('full', 'raw')
"""Exported if the user names no files."""
MAX_IMAGES = 64


class ImageBenchmark(Benchmark):
    """A sample is one batch of prepared pictures; results are in pixels of the original."""

    kind = 'images'
    models = 'models of single images'
    foreign = ('voxels', 'sweep')

    def load(self) -> None:
        args = self.args
        files_metadata, self.options = read_files(args)
        paths = list_images(args.images or [DEFAULT_PICTURE])
        if len(paths) > MAX_IMAGES:
            print(f'{len(paths)} images given, only the first {MAX_IMAGES} are used')
        first = next(iter(args.onnx), '')
        self.detector = read_config(args.config, args.checkpoint, args.cfg_options, args.device, file=first)
        for path, metadata in zip(args.onnx, files_metadata, strict=True):
            metadata.require(path, self.detector.family.name)
            refuse_other_settings(self.detector.cfg, metadata.options.get('cfg_options', {}), path)
        build(self.detector)
        self.images = [read_picture(path, self.detector.rule) for path in paths[:MAX_IMAGES]]
        load_weights(self.detector)
        self.notes = [
            f'{path} was made from another checkpoint than {args.checkpoint}'
            for path, metadata in zip(args.onnx, files_metadata, strict=True)
            if metadata.checkpoint_sha256 != self.detector.checkpoint_sha256
        ]
        if files_metadata:
            rule = files_metadata[0].preprocess
            self.detector.normalise_with(rule.mean, rule.std)
        self.options = resolve(self.options, self.detector.model, self.detector.rule)
        self.batch = self.options.batch
        forms, stems = [metadata.form for metadata in files_metadata], [Path(path).stem for path in args.onnx]
        self.files = short_labels(args.onnx, forms, stems)

    def export(self, folder: str) -> dict[str, str]:
        paths, detector = {}, self.detector
        for form in EXPORTED_FORMS:
            if form in detector.family.forms:
                options = detector.family.choose(**{**self.options, 'form': form, 'opset': 0})
                options = resolve(options, detector.model, detector.rule)
                paths[form] = str(Path(folder) / f'{form}.onnx')
                _, seconds = export_files(detector, options, paths[form], [self.prepare()[0]])
                print(f'{form}: exported in {seconds:.1f} s', file=sys.stderr)
        return paths

    def prepare(self, start: int = 0) -> list[PreparedImage]:
        """One batch of images from index `start` on, cyclic."""
        size = self.options.height, self.options.width
        pictures = [self.images[(start + index) % len(self.images)] for index in range(self.batch)]
        return [prepare_fixed(self.detector.rule, picture, *size) for picture in pictures]

    def groups(self) -> dict[str, list[list[PreparedImage]]]:
        batches = [self.prepare(start) for start in range(0, max(len(self.images), self.batch), self.batch)]
        shift = self.ranks.rank % len(batches)
        return {'': [*batches[shift:], *batches[:shift]]}

    def torch_contenders(self, stack: contextlib.ExitStack) -> list[Contender]:
        """Eager PyTorch, and with `--fuse-conv-bn` its fused copy."""
        models = {BASELINE: self.detector.model}
        if self.args.fuse_conv_bn:
            models[FUSED] = fused(self.detector.model)
        return [torch_contender(self.detector.family, model, name) for name, model in models.items()]

    def file_contenders(
        self, stack: contextlib.ExitStack, engine: str, label: str, path: str
    ) -> list[Contender]:
        backend = stack.enter_context(ENGINES[engine].open(path, self.threads[0]))
        contender = backend_contender(self.detector.family, backend, engine, label, path)
        if self.args.skip_refused:  # an engine may refuse a graph only when it runs it
            contender.run(self.prepare())
        return [contender]

    def compiled_run(self, stack: contextlib.ExitStack) -> Callable[[Any], Run]:
        model = base.compiled(self.detector.model)
        run = torch_contender(self.detector.family, model).run
        base.first_run(lambda: run(self.prepare()))
        return run

    def input_shape(self) -> str:
        return f'{self.batch}x3x{self.options.height}x{self.options.width}'


def read_files(args: argparse.Namespace) -> tuple[list[Metadata], Options]:
    """Metadata of the user's files, and the size and batch on which files and command line agree."""
    # pairs of where a value comes from, and the value
    sizes, batches = [], []
    if args.shape:
        sizes.append(('--shape', (args.shape[0], args.shape[-1])))
    if args.samples_per_gpu:
        batches.append(('--samples-per-gpu', args.samples_per_gpu))
    files_metadata = [_read_metadata(path) for path in args.onnx]
    for path, metadata in zip(args.onnx, files_metadata, strict=True):
        if not metadata.options['dynamic']:
            sizes.append((path, (metadata.options['height'], metadata.options['width'])))
            if not metadata.options.get('dynamic_batch'):
                batches.append((path, metadata.options['batch']))
    for pairs in (sizes, batches):
        for source, value in pairs[1:]:
            first_source, first_value = pairs[0]
            if value != first_value:
                raise UsageError(
                    f'{source} has {value}, {first_source} has {first_value}; one run measures one size'
                )
    height, width = sizes[0][1] if sizes else (0, 0)
    batch = batches[0][1] if batches else 1
    return files_metadata, Options(IMAGE, height=height, width=width, batch=batch)


def _read_metadata(path: str) -> Metadata:
    metadata = read_metadata(path)
    if metadata.samples != 'images':
        raise ModelFileError(
            f'{path}: is a model of family {metadata.family!r}, which does not run on single images; pass '
            "a file of the config's model"
        )
    return metadata


def torch_contender(family: ImageFamily, model: torch.nn.Module, name: str = BASELINE) -> Contender:
    """Contender that runs upstream's test path in eager PyTorch."""
    import torch

    device, reference = next(model.parameters()).device, family.reference(model)

    def run(images: Sequence[PreparedImage]) -> Run:
        start = time.perf_counter()
        detections = reference.results(images, rescale=True)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return Run(time.perf_counter() - start, None, sum(map(len, detections)))

    return Contender(name, BASELINE, '', run)


def backend_contender(family: ImageFamily, backend: Backend, engine: str, label: str, file: str) -> Contender:
    """Contender that runs a graph, and in numpy the post-processing that its form leaves out."""

    def run(images: Sequence[PreparedImage]) -> Run:
        start = time.perf_counter()
        feeds = family.feeds(images, rescale=True)
        outputs = backend.infer(backend.select_inputs(feeds))
        network_end = time.perf_counter()
        detections = results_of(family.name, backend.metadata, outputs, feeds)
        end = time.perf_counter()
        return Run(end - start, network_end - start, sum(map(len, detections)))

    return Contender(f'{engine} {label}', engine, backend.metadata.form, run, file)
