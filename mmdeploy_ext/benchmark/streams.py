"""The benchmark of models of frames and sweeps: PyTorch and every contract, part by part, on one drive.

Every contender runs the same drive with a memory of its own, where it has one; its time begins with a
prepared frame, or the points of a sweep, and ends with decoded boxes.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.benchmark import compiled, measure, memory
from mmdeploy_ext.benchmark.clocks import PartClock
from mmdeploy_ext.benchmark.measure import Contender, Run
from mmdeploy_ext.benchmark.plan import Plan, bar_rows, short_labels
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.engines.registry import BASELINE, COMPILED, DEFAULT, ENGINES
from mmdeploy_ext.exporting import deployment as deploy
from mmdeploy_ext.exporting.files import export_files, read_files
from mmdeploy_ext.proving.inputs.synthetic_drive import synthetic_drive
from mmdeploy_ext.proving.inputs.voxel_sets import points_of
from mmdeploy_ext.runtime.frames import Sweep

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping, Sequence

    from mmdeploy_ext.benchmark.plan import Runs
    from mmdeploy_ext.runtime.frames import Frame, Stepper

DRIVE_FRAMES = 24
"""Frames of the synthetic drive; more rounds drive it again."""
AFTER = 'boxes'
"""The part that comes after the graphs."""
SWEEPS = 4
"""Generated where none is given."""


class StreamPlan(Plan):
    """Frames of a synthetic drive, or sweeps; real ones stand in for those of generated frames."""

    kind = 'stream'
    models = 'streaming models'
    foreign = (
        'shape', 'samples_per_gpu', 'images', 'prepared', 'fuse_conv_bn', 'profile', 'launcher', 'voxels',
        'no_racing',
    )  # fmt: skip

    def load(self) -> None:
        """See `Plan.load`."""
        args = self.args
        found = [read_files(path).metadata for path in args.onnx]
        contracts = [metadata.options.get('contract', metadata.family) for metadata in found]
        self.files = short_labels(args.onnx, contracts)
        self.deployment = deploy.load(args.config, args.checkpoint, args.cfg_options, args.device)
        self.samples = self._samples()

    def _samples(self) -> list[Frame | Sweep]:
        """Return one sample per round, in the order of `measure.interleave`: the warm-up is at the end."""
        args, rule, family = self.args, self.deployment.rule, self.deployment.family
        if family.memory:
            drive = list(synthetic_drive(DRIVE_FRAMES, rule, scenes=1))
        else:
            drive = list(family.generated_sweeps(rule, len(args.sweep) or SWEEPS))
        voxels = getattr(rule, 'voxels', rule)
        if args.sweep and voxels is None:
            raise UsageError(f'--sweep {args.sweep[0]}: {args.config} takes pictures alone')
        for index, path in enumerate(args.sweep):  # in place of the points of a generated frame
            ((name, points),) = points_of(path, self.deployment.cfg, voxels, 1)
            drive[index] = dataclasses.replace(drive[index], points=points, name=name)
        count = args.warmup + args.max_iter * args.repeat_num + args.spare_rounds
        samples = [
            dataclasses.replace(drive[index % len(drive)], scene_token=f'drive {index // len(drive)}')
            for index in range(count)
        ]
        return [*samples[args.warmup :], *samples[: args.warmup]]

    def export(self, folder: str) -> dict[str, str]:
        """See `Plan.export`: the contracts that the family names."""
        family, files = self.deployment.family, {}
        for contract in family.measured or (family.choose(opset=0).contract,):
            files[contract] = str(Path(folder) / (f'{contract}.onnx' if contract == 'fork' else contract))
            asked = family.choose(contract=contract, opset=0)
            options = deploy.resolve_opset(asked, self.deployment.model)
            export_files(self.deployment, options, files[contract])
        return files

    def groups(self) -> list[Sequence[Any]]:
        """See `Plan.groups`."""
        return [self.samples]

    def torch_contenders(self, stack: contextlib.ExitStack) -> list[Contender]:
        """See `Plan.torch_contenders`."""
        family, model = self.deployment.family, self.deployment.model
        clock = stack.enter_context(PartClock(family.timed_methods(model)))
        return [torch_contender(family.reference(model), clock)]

    def compiled_run(self, stack: contextlib.ExitStack) -> Callable[[Any], Run]:
        """See `Plan.compiled_run`; it is tried with an empty memory and with one."""
        family, model = self.deployment.family, compiled.compiled(self.deployment.model)
        stepper = family.reference(model)
        compiled.first_run(lambda: _drive(stepper, self.samples[:2]))
        stepper.reset()
        clock = stack.enter_context(PartClock(family.timed_methods(model)))
        return torch_contender(stepper, clock).run

    def file_contenders(
        self, stack: contextlib.ExitStack, engine: str, label: str, path: str
    ) -> list[Contender]:
        """See `Plan.file_contenders`; it is tried with an empty memory and with one."""
        options = ENGINES[engine].runner_options(self.threads[0])
        runner = stack.enter_context(self.deployment.family.runner(read_files(path).paths, options))
        if self.args.skip_refused:
            _drive(runner, self.samples[:2])
            runner.reset()
        return [runner_contender(runner, engine, label, path)]

    def memory_call(self, contender: Contender) -> Callable[[], tuple[int, object]]:
        """See `Plan.memory_call`: the first samples of the drive."""
        start = len(self.samples) - self.args.warmup
        samples = [*self.samples[start:], *self.samples[:start]][: memory.RUNS]
        if not ENGINES[contender.engine].files:
            change = compiled.for_this_process if contender.engine == COMPILED else None
            return functools.partial(run_model, self.source(), samples, change)
        return functools.partial(run_files, self.source(), contender.engine, contender.file, samples)

    def facts(self) -> dict[str, Any]:
        """See `Plan.facts`."""
        first = self.samples[0]
        array = first.points if isinstance(first, Sweep) else first.images
        return dict(input_shape='x'.join(map(str, array.shape)))

    def complete(self, row: dict[str, Any], contender: Contender, runs: Sequence[Run]) -> None:
        """See `Plan.complete`: medians of the parts in ms, and bytes fed in the median frame."""
        fed = [run.fed_bytes for run in runs if run.fed_bytes is not None]
        row['parts_ms'] = {
            part: round(statistics.median(run.parts_s[part] for run in runs) * 1e3, 3)
            for part in runs[0].parts_s
        }
        row['fed_bytes'] = int(statistics.median(fed)) if fed else None

    def result(self, contenders: Sequence[Contender], runs: Sequence[Runs], *memories: Any) -> dict[str, Any]:
        """See `Plan.result`; what the family promises of its contracts is held against bars."""
        result = super().result(contenders, runs, *memories)
        ratio, family = contract_ratio(contenders, runs[0]), self.deployment.family
        held = held_to(result['contenders'], ratio, family.bars)
        return dict(result, deploy_to_fork=ratio, bars=held, bars_of=family.bars_of)


def torch_contender(stepper: Stepper, clock: PartClock) -> Contender:
    """Return the published model in eager PyTorch; what no clock of the family counts is the head."""

    def run(sample: Frame | Sweep) -> Run:
        before, start = dict(clock.seconds), time.perf_counter()
        found = stepper.step(sample).detections
        total = time.perf_counter() - start
        parts = clock.since(before)
        parts['head'] = total - sum(parts.values())
        return Run(total, None, len(found), parts_s=parts)

    return Contender(BASELINE, BASELINE, '', run)


def runner_contender(stepper: Any, engine: str, form: str, file: str) -> Contender:
    """Return exported files of a contract on an engine; the stepper is of `SequenceFamily.runner`."""

    def run(sample: Frame | Sweep) -> Run:
        before, start = stepper.graph_seconds(), time.perf_counter()
        found = stepper.step(sample).detections
        total = time.perf_counter() - start
        parts = {part: seconds - before[part] for part, seconds in stepper.graph_seconds().items()}
        network = sum(seconds for part, seconds in parts.items() if part != AFTER)
        return Run(total, network, len(found), parts_s=parts, fed_bytes=stepper.fed_bytes)

    return Contender(f'{engine} {form}', engine, form, run, file)


def contract_ratio(contenders: Sequence[Contender], runs: Runs) -> dict[str, Any] | None:
    """Return the time of the deploy contract against the fork's in ONNX Runtime; None unless both ran."""
    names = {one.form: one.name for one in contenders if one.engine == DEFAULT.name}
    if not {'deploy', 'fork'} <= names.keys():
        return None
    return measure.ratio(runs[names['deploy']], runs[names['fork']])


def held_to(
    rows: Sequence[Mapping[str, Any]], ratio: Mapping[str, Any] | None, bars: Sequence[tuple[str, str, float]]
) -> list[dict[str, Any]]:
    """Return what the deploy contract in ONNX Runtime is held to, as far as it was measured; see `bar_rows`.

    The family's bars are name, figure ('torch' and 'fork': times against theirs, 'fed_bytes', or a part), and
    the most that it may be; `ratio` is that of `contract_ratio`.
    """
    found = next((row for row in rows if (row['engine'], row['form']) == (DEFAULT.name, 'deploy')), None)
    if found is None:
        return []
    ratios = dict(torch=found['ratio_to_torch'], fork=ratio)
    medians = {name: one and one['median'] for name, one in ratios.items()}
    figures = dict(found['parts_ms'], **medians, fed_bytes=found['fed_bytes'])
    return bar_rows([(name, figures.get(figure), bar) for name, figure, bar in bars])


def run_model(
    source: memory.Source, samples: Sequence[Frame | Sweep], change: Callable[[Any], Any] | None = None
) -> tuple[int, object]:
    """Run a model, or what `change` makes of it, in a process of its own; see `memory.measure`."""
    before, loaded = source.load(change)
    return before, _drive(loaded.family.reference(loaded.model), samples)


def run_files(
    source: memory.Source, engine: str, path: str, samples: Sequence[Frame | Sweep]
) -> tuple[int, object]:
    """Run exported files in a process of their own; see `memory.measure`."""
    source.prepare(ENGINES[engine].package)
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.families.base import DETECTOR, find_family

    family = find_family(load_config(source.config, source.cfg_options), DETECTOR)
    files = read_files(path)
    before = memory.start()
    return before, _drive(family.runner(files.paths, ENGINES[engine].runner_options(source.threads)), samples)


def _drive(stepper: Stepper, samples: Sequence[Frame | Sweep]) -> Stepper:
    for sample in samples:
        stepper.step(sample)
    return stepper
