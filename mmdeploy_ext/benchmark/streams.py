"""The benchmark of models of frames and sweeps: PyTorch and exports of several contracts on one drive.

Every contender, which is PyTorch or one export on one engine, runs the same drive and has its own memory of
earlier frames. Its time begins with a prepared frame, or the points of a sweep, and ends with decoded boxes.

A sample is a frame (all cameras of a car at one moment) or a sweep (one revolution of a LiDAR). The frames of
a drive are in the order of time, and a round runs one of them.

A contract is one of the sets of files that a family can write for a model, named by the option `contract`:
StreamPETR has 'deploy', this project's graphs for any engine, 'fork', the one graph of its deployment fork,
and 'autoware'; Sparse4D and BEVFormer have 'portable' and those of the programs that they are for; LiDAR
detectors have 'deploy', and CenterPoint 'autoware', too. A file whose metadata lack the option has the name
of the family as its contract. Rows of the result have the contract as their `form`, or the path, if two files
have one contract. A bar is the largest value of a figure that passes.

A stepper (`runtime.frames.Stepper`) computes one sample after the other: the reference is PyTorch's model, a
runner the exported files on an engine.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.benchmark import compiled, measure, memory
from mmdeploy_ext.benchmark.base import Benchmark, bar_rows, short_labels
from mmdeploy_ext.benchmark.clocks import PartClock
from mmdeploy_ext.benchmark.measure import Contender, Run
from mmdeploy_ext.benchmark.stream_bars import MEASURED, Measured
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.engines.registry import BASELINE, COMPILED, DEFAULT, ENGINES
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.files import export_files, read_files
from mmdeploy_ext.families.model import build, load_weights, read_config, resolve_opset
from mmdeploy_ext.proving.inputs.voxel_sets import points_of
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.synthetic.drive import synthetic_drive

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from mmdeploy_ext.benchmark.base import Runs
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.runtime.frames import Frame, Stepper

DRIVE_FRAMES = 24
"""Frames of the synthetic drive, or the number of `--sweep` if that is larger; further rounds repeat it."""
DECODING = 'boxes'
"""Name of the part that follows the graphs."""
SWEEPS = 4
"""Number of generated sweeps if the user gives none."""
GROWTH_FRAMES = 100
"""Smallest number of frames of which `growth` is computed: whether frames become slower during a drive."""


class StreamBenchmark(Benchmark):
    """Benchmark on frames of a synthetic drive, or on generated sweeps.

    Each file of `--sweep` replaces the generated points of one frame, beginning with the first, or of one
    sweep.

    Attributes:
        samples: a sample for each round, prepared for the network, see `load`.
    """

    kind = 'stream'
    models = 'streaming models'
    foreign = (
        'shape', 'samples_per_gpu', 'images', 'prepared', 'fuse_conv_bn', 'profile', 'launcher', 'voxels',
        'no_racing',
    )  # fmt: skip

    def load(self) -> None:
        """Load the model, and make one sample per round.

        `samples` begins with those of the rounds that count; those of the warm-up, which are the first of the
        drive, are its end. If there are more rounds than frames the drive begins again as another scene,
        which empties a memory. A round that is repeated, as other processes disturbed it, runs its sample
        again. `files` is contract (or path, if two have one contract) -> path. UsageError: `--sweep` of a
        model that takes pictures alone; DataError: a sweep cannot be read. Both are raised before weights are
        read.
        """
        args = self.args
        files_metadata = [read_files(path).metadata for path in args.onnx]
        contracts = [metadata.options.get('contract', metadata.family) for metadata in files_metadata]
        self.files = short_labels(args.onnx, contracts)
        sweeps: list[tuple[str, np.ndarray]] = []

        self.deployment = read_config(args.config, args.checkpoint, args.cfg_options, args.device)
        build(self.deployment)
        rule, family = self.deployment.rule, self.deployment.family
        voxels = getattr(rule, 'voxels', rule)
        if args.sweep and voxels is None:
            raise UsageError(f'--sweep {args.sweep[0]}: {args.config} takes pictures alone')
        for path in args.sweep:
            sweeps.extend(points_of(path, self.deployment.cfg, voxels, limit=1))
        load_weights(self.deployment)
        if family.memory:
            drive = list(synthetic_drive(max(DRIVE_FRAMES, len(args.sweep)), rule, scenes=1))
        else:
            drive = list(family.data.generated_sweeps(rule, len(args.sweep) or SWEEPS))
        for index, (name, points) in enumerate(sweeps):
            drive[index] = dataclasses.replace(drive[index], points=points, name=name)
        count = args.warmup + args.max_iter * args.repeat_num + args.spare_rounds
        samples = [
            dataclasses.replace(drive[index % len(drive)], scene_token=f'drive {index // len(drive)}')
            for index in range(count)
        ]
        # `measure.interleave` counts warm-up rounds from -warmup
        self.samples: list[Frame | Sweep] = [*samples[args.warmup :], *samples[: args.warmup]]

    def export(self, folder: str) -> dict[str, str]:
        """Export the contracts that the family measures into a folder; return contract -> file or folder."""
        family, files = self.deployment.family, {}
        for contract in measured_of(family).contracts:
            files[contract] = str(Path(folder) / (f'{contract}.onnx' if contract == 'fork' else contract))
            options = family.choose(contract=contract, opset=0)
            options = resolve_opset(options, self.deployment.model)
            export_files(self.deployment, options, files[contract])
        return files

    def first_samples(self, count: int) -> list[Frame | Sweep]:
        """Return the first `count` samples of the drive in their order, those of the warm-up first."""
        start = len(self.samples) - self.args.warmup
        return [*self.samples[start:], *self.samples[:start]][:count]

    def groups(self) -> list[Sequence[Any]]:
        """Return the samples of all rounds as one group: figures are computed per group."""
        return [self.samples]

    def torch_contenders(self, stack: contextlib.ExitStack) -> list[Contender]:
        """Return the model in eager PyTorch.

        Until the stack closes, the methods of the model that the family names are timed.
        """
        family, model = self.deployment.family, self.deployment.model
        stepper = family.reference(model)
        clock = stack.enter_context(PartClock(stepper.timed_methods()))
        return [torch_contender(stepper, clock)]

    def compiled_run(self, stack: contextlib.ExitStack) -> Callable[[Any], Run]:
        """Compile a copy of the model by `torch.compile` and return a function that runs it on a sample.

        It is compiled on the first two samples, the second with what the first one left in a memory. Until
        the stack closes, the methods of the copy that the family names are timed. EngineError: it cannot be
        compiled.
        """
        family, model = self.deployment.family, compiled.compiled(self.deployment.model)
        stepper = family.reference(model)
        compiled.first_run(lambda: _run_steps(stepper, self.first_samples(2)))
        stepper.reset()
        clock = stack.enter_context(PartClock(stepper.timed_methods()))
        return torch_contender(stepper, clock).run

    def file_contenders(
        self, stack: contextlib.ExitStack, engine: str, label: str, path: str
    ) -> list[Contender]:
        """Return one contender, the files of a contract on an engine, which `stack` closes.

        `label`, the contract or the path, becomes its form, `path` is that of the file or folder. With
        `--skip-refused` the first two samples are run here; what they raise lets the caller leave the engine
        out.
        """
        options = ENGINES[engine].runner_options(self.threads[0])
        files = read_files(path)
        contract = contract_of(self.deployment.family, files.metadata.options)
        runner = stack.enter_context(contract.runner(files.paths, options))
        if self.args.skip_refused:
            _run_steps(runner, self.first_samples(2))
            runner.reset()
        return [runner_contender(runner, engine, label, path)]

    def memory_call(self, contender: Contender) -> Callable[[], tuple[int, object]]:
        """Return a function that runs the contender on the first samples of the drive, for `memory.measure`.

        It can be pickled, since a child process calls it, and returns the kB of that process before loading
        and the object that has to stay alive while its memory is read.
        """
        samples = self.first_samples(memory.RUNS)
        if not ENGINES[contender.engine].files:
            change = compiled.compiled_in_child if contender.engine == COMPILED else None
            return functools.partial(run_model, self.source(), samples, change)
        return functools.partial(run_files, self.source(), contender.engine, contender.file, samples)

    def facts(self) -> dict[str, Any]:
        """Return the entry `input_shape`, that of the first sample.

        It is points x values of a point, such as '30000x5', of a sweep, and of a frame of cameras and a
        LiDAR; of a frame without points it is cameras x channels x height x width, such as '6x3x256x704'.
        """
        first = self.samples[0]
        array = first.points if isinstance(first, Sweep) and len(first.points) else first.images
        return dict(input_shape='x'.join(map(str, array.shape)))

    def complete(self, row: dict[str, Any], contender: Contender, runs: Sequence[Run]) -> None:
        """Add `parts_ms`, part -> median time in ms, and `fed_bytes` to a row of the JSON file.

        The latter is the median number of bytes that the engine was fed per sample besides the images, such
        as poses and memory; None if unknown. `runs` has at least one run.
        """
        fed_bytes = [run.fed_bytes for run in runs if run.fed_bytes is not None]
        row['parts_ms'] = {
            part: round(statistics.median(run.parts_s[part] for run in runs) * 1e3, 3)
            for part in runs[0].parts_s
        }
        row['fed_bytes'] = int(statistics.median(fed_bytes)) if fed_bytes else None

    def result(self, contenders: Sequence[Contender], runs: Sequence[Runs], *memories: Any) -> dict[str, Any]:
        """Return the content of the JSON file, with `deploy_to_fork`, `bars` and `bars_of`.

        These are the result of `contract_ratio`, that of `check_bars` for the family's first contract, and
        the model and machine that the bars were set for. `runs` has the runs of the one group; `memories` is
        the argument of that name of `Benchmark.result`, name of a contender -> result of `memory.measure`.
        """
        result = super().result(contenders, runs, *memories)
        ratio, measured = contract_ratio(contenders, runs[0]), measured_of(self.deployment.family)
        bars = check_bars(result['contenders'], ratio, measured.bars, measured.contracts[0])
        return dict(result, deploy_to_fork=ratio, bars=bars, bars_of=measured.bars_of)


def measured_of(family: Family) -> Measured:
    """Return what a benchmark of a family exports, and its bars."""
    return MEASURED.get(family.name) or Measured((family.choose(opset=0).contract,))


def torch_contender(stepper: Stepper, clock: PartClock) -> Contender:
    """Return a contender that runs the model in PyTorch, eager or compiled, as `stepper` does.

    `clock` has the seconds of each timed part so far. Time that is in none of them counts for the part
    'head'. Results are in numpy, so that a GPU has ended its work when a run ends; parts on a GPU are the
    times of the calls.
    """

    def run(sample: Frame | Sweep) -> Run:
        before, start = dict(clock.seconds), time.perf_counter()
        detections = stepper.step(sample).detections
        total_s = time.perf_counter() - start
        parts_s = clock.since(before)
        parts_s['head'] = total_s - sum(parts_s.values())
        return Run(total_s, None, len(detections), parts_s=parts_s)

    return Contender(BASELINE, BASELINE, '', run)


def runner_contender(stepper: Any, engine: str, form: str, file: str) -> Contender:
    """Return a contender that runs exported files of a contract on an engine.

    `stepper` is what `SequenceFamily.runner` returns for them: its `graph_seconds()` are part -> seconds so
    far; a part `DECODING` in them does not count as time of the network. `form` is the contract, or a path if
    two files have it, `file` the path of the files.
    """

    def run(sample: Frame | Sweep) -> Run:
        before, start = stepper.graph_seconds(), time.perf_counter()
        detections = stepper.step(sample).detections
        total_s = time.perf_counter() - start
        parts_s = {part: seconds - before[part] for part, seconds in stepper.graph_seconds().items()}
        network_s = sum(seconds for part, seconds in parts_s.items() if part != DECODING)
        return Run(total_s, network_s, len(detections), parts_s=parts_s, fed_bytes=stepper.fed_bytes)

    return Contender(f'{engine} {form}', engine, form, run, file)


def contract_ratio(contenders: Sequence[Contender], runs: Runs) -> dict[str, Any] | None:
    """Return `measure.ratio` of the times of contract deploy to those of fork, both in ONNX Runtime.

    It has `median`, `q1`, `q3` and so on, see `measure.spread`; None unless both ran. `runs` is name of a
    contender -> its runs.
    """
    names = {contender.form: contender.name for contender in contenders if contender.engine == DEFAULT.name}
    if not {'deploy', 'fork'} <= names.keys():
        return None
    return measure.ratio(runs[names['deploy']], runs[names['fork']])


def check_bars(
    rows: Sequence[Mapping[str, Any]],
    ratio: Mapping[str, Any] | None,
    bars: Sequence[tuple[str, str, float]],
    form: str = 'deploy',
) -> list[dict[str, Any]]:
    """Return `name`, `value`, `bar` and `passed` of each bar of a contract in ONNX Runtime.

    Bars whose figure was not measured are left out; all are if this contract was not.

    Args:
        rows: rows of the contenders in the JSON file. Read are `engine`, `form`, `ratio_to_torch` (a dict
            with `median`, or None), `parts_ms`, `fed_bytes`, and, if they are there, `memory` and
            `samples_ms`, the times of all samples.
        ratio: result of `contract_ratio`; None if 'deploy' or 'fork' was not measured.
        bars: name, figure and largest value of each bar. A figure is 'torch' (ratio of the contract's times
            to PyTorch's), 'fork' (that of deploy's to fork's, whatever `form` is), 'memory' (ratio of peaks
            to PyTorch's), 'growth' (see `growth`), 'fed_bytes', or the name of a part (ms).
        form: the contract.
    """
    row = next((row for row in rows if (row['engine'], row['form']) == (DEFAULT.name, form)), None)
    if row is None:
        return []
    torch_row = next((row for row in rows if row['engine'] == BASELINE), {})
    peaks_mb = [(each.get('memory') or {}).get('peak_mb') for each in (row, torch_row)]
    ratios = dict(torch=row['ratio_to_torch'], fork=ratio)
    medians = {name: figures and figures['median'] for name, figures in ratios.items()}
    values = dict(row['parts_ms'], **medians, fed_bytes=row['fed_bytes'])
    values.update(memory=peaks_mb[0] / peaks_mb[1] if all(peaks_mb) else None)
    values.update(growth=growth(row.get('samples_ms', ())))
    return bar_rows([(name, values.get(figure), bar) for name, figure, bar in bars])


def growth(samples_ms: Sequence[float]) -> float | None:
    """Return the median time of the last quarter of the frames over that of the first quarter.

    It is more than 1 if later frames are slower, for example since a memory grows; None for fewer than
    `GROWTH_FRAMES`, which tell nothing.
    """
    if len(samples_ms) < GROWTH_FRAMES:
        return None
    quarter = len(samples_ms) // 4
    return statistics.median(samples_ms[-quarter:]) / statistics.median(samples_ms[:quarter])


def run_model(
    source: memory.Source, samples: Sequence[Frame | Sweep], change: Callable[[Any], Any] | None = None
) -> tuple[int, object]:
    """Load a model, apply `change` to it and run it on samples in a child process, for `memory.measure`.

    Args:
        source: the config and the checkpoint, for the child process.
        samples: samples of one drive in their order.
        change: takes the model and returns the one that is run, such as a compiled copy; with None the model
            runs as it is.

    Returns:
        kB of the process before the model had weights, and the object that has to stay alive.
    """
    baseline_kb, deployment = source.load(change)
    return baseline_kb, _run_steps(deployment.family.reference(deployment.model), samples)


def run_files(
    source: memory.Source, engine: str, path: str, samples: Sequence[Frame | Sweep]
) -> tuple[int, object]:
    """Run the files of a contract on an engine in a child process, for `memory.measure`.

    `engine` is a key of `ENGINES` that runs files, `path` the path of the file or folder; `source` and
    `samples` are those of `run_model`. Returned are the kB of the process before the files are opened, with
    all libraries imported, so that their memory does not count, and the object that has to stay alive.
    """
    source.prepare(ENGINES[engine].package)
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.families.base import DETECTOR, find_family

    family = find_family(load_config(source.config, source.cfg_options), DETECTOR)
    files = read_files(path)
    baseline_kb = memory.reset_peak()
    contract = contract_of(family, files.metadata.options)
    runner = contract.runner(files.paths, ENGINES[engine].runner_options(source.threads))
    return baseline_kb, _run_steps(runner, samples)


def _run_steps(stepper: Stepper, samples: Sequence[Frame | Sweep]) -> Stepper:
    for sample in samples:
        stepper.step(sample)
    return stepper
