"""Benchmark of models that take frames or sweeps: PyTorch and exported files on the same drive."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.bench.benchmark import base
from mmdeploy_ext.bench.benchmark.base import Benchmark, short_labels
from mmdeploy_ext.bench.benchmark.measure import Contender, PartClock, Run
from mmdeploy_ext.engines.registry import BASELINE, ENGINES
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.detector import build, load_weights, read_config, resolve_opset
from mmdeploy_ext.families.detector_files import export_files, read_files
from mmdeploy_ext.families.synthetic.drive import synthetic_drive
from mmdeploy_ext.proving.inputs import points_of
from mmdeploy_ext.runtime.frames import Sweep

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Sequence

    import numpy as np

    from mmdeploy_ext.runtime.frames import Frame, Stepper

DRIVE_FRAMES = 24
"""Frames of the synthetic drive; further rounds repeat it."""
DECODING = 'boxes'
"""Part after the graphs: outputs to boxes."""
SWEEPS = 4
"""Number of generated sweeps if the user gives none."""


class StreamBenchmark(Benchmark):
    """Sweeps, or of a subclass frames; `samples` has one per round, and one to count products."""

    kind = 'stream'
    models = 'streaming models'
    foreign = ('shape', 'samples_per_gpu', 'images', 'fuse_conv_bn', 'launcher', 'voxels')

    def load(self) -> None:
        args = self.args
        files_metadata = [read_files(path).metadata for path in args.onnx]
        contracts = [metadata.options.get('contract', metadata.family) for metadata in files_metadata]
        self.files = short_labels(args.onnx, contracts)
        self.detector = read_config(args.config, args.checkpoint, args.cfg_options, args.device)
        build(self.detector)
        rule = self.detector.rule
        voxels = getattr(rule, 'voxels', rule)
        if args.sweep and voxels is None:
            raise UsageError(f'--sweep {args.sweep[0]}: {args.config} accepts images only')
        sweeps: list[tuple[str, np.ndarray]] = []
        for path in args.sweep:
            sweeps.extend(points_of(path, self.detector.cfg, voxels, limit=1))
        load_weights(self.detector)
        drive = self.drive()
        for index, (name, points) in enumerate(sweeps):
            drive[index] = dataclasses.replace(drive[index], points=points, name=name)
        self.samples: list[Frame | Sweep] = [
            dataclasses.replace(drive[index % len(drive)], scene_token=f'drive {index // len(drive)}')
            for index in range(args.warmup + args.max_iter * args.repeat_num + 1)
        ]

    def drive(self) -> list[Any]:
        sweeps = len(self.args.sweep) or SWEEPS
        return list(self.detector.family.data.generated_sweeps(self.detector.rule, sweeps))

    def export(self, folder: str) -> dict[str, str]:
        options = resolve_opset(self.detector.family.choose(opset=0), self.detector.model)
        path = str(Path(folder) / 'model')
        export_files(self.detector, options, path)
        return {options.contract: path}

    def groups(self) -> dict[str, Sequence[Any]]:
        return {'': self.samples}

    def torch_contenders(self, stack: contextlib.ExitStack) -> list[Contender]:
        family, model = self.detector.family, self.detector.model
        stepper = family.reference(model)
        clock = stack.enter_context(PartClock(stepper.timed_methods()))
        return [torch_contender(stepper, clock)]

    def compiled_run(self, stack: contextlib.ExitStack) -> Callable[[Any], Run]:
        """Compile a copy on two samples, the second with a memory."""
        family, model = self.detector.family, base.compiled(self.detector.model)
        stepper = family.reference(model)
        base.first_run(lambda: _run_steps(stepper, self.samples[:2]))
        stepper.reset()
        clock = stack.enter_context(PartClock(stepper.timed_methods()))
        return torch_contender(stepper, clock).run

    def file_contenders(
        self, stack: contextlib.ExitStack, engine: str, label: str, path: str
    ) -> list[Contender]:
        options = ENGINES[engine].runner_options(self.threads[0])
        files = read_files(path)
        contract = contract_of(self.detector.family, files.metadata.options)
        runner = stack.enter_context(contract.runner(files.paths, options))
        if self.args.skip_refused:  # an engine may refuse a graph only when it runs it
            _run_steps(runner, self.samples[:2])
            runner.reset()
        return [runner_contender(runner, engine, label, path)]

    def input_shape(self) -> str:
        """Shape of the first sample: points x values, or cameras x channels x height x width."""
        first = self.samples[0]
        array = first.points if isinstance(first, Sweep) and len(first.points) else first.images
        return 'x'.join(map(str, array.shape))


class FrameBenchmark(StreamBenchmark):
    """Frames of cameras alone."""

    foreign = (*StreamBenchmark.foreign, 'sweep')

    def drive(self) -> list[Frame]:
        return list(synthetic_drive(DRIVE_FRAMES, self.detector.rule, scenes=1))


def torch_contender(stepper: Stepper, clock: PartClock) -> Contender:
    """Contender that runs PyTorch; the time outside the timed parts counts as 'head'."""

    def run(sample: Frame | Sweep) -> Run:
        seconds_before, start = dict(clock.seconds), time.perf_counter()
        detections = stepper.step(sample).detections
        total_s = time.perf_counter() - start
        parts_s = clock.since(seconds_before)
        parts_s['head'] = total_s - sum(parts_s.values())
        return Run(total_s, None, len(detections), parts_s=parts_s)

    return Contender(BASELINE, BASELINE, '', run)


def runner_contender(stepper: Any, engine: str, form: str, file: str) -> Contender:
    """Contender that runs exported files; the network's time leaves out the part `DECODING`."""

    def run(sample: Frame | Sweep) -> Run:
        seconds_before, start = stepper.graph_seconds(), time.perf_counter()
        detections = stepper.step(sample).detections
        total_s = time.perf_counter() - start
        parts_s = {part: end - seconds_before[part] for part, end in stepper.graph_seconds().items()}
        network_s = sum(seconds for part, seconds in parts_s.items() if part != DECODING)
        return Run(total_s, network_s, len(detections), parts_s=parts_s, fed_bytes=stepper.fed_bytes)

    return Contender(f'{engine} {form}', engine, form, run, file)


def _run_steps(stepper: Stepper, samples: Sequence[Frame | Sweep]) -> Stepper:
    for sample in samples:
        stepper.step(sample)
    return stepper
