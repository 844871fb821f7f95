"""The loop of all benchmarks: contenders take turns on the same samples, in one process."""

from __future__ import annotations

import abc
import argparse
import contextlib
import copy
import functools
import importlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.distributed import Ranks
from mmdeploy_ext.base.errors import EngineError, Mm2OnnxError, UsageError
from mmdeploy_ext.bench.benchmark import measure
from mmdeploy_ext.bench.benchmark.measure import Contender, OtherLoad, cores, load_notes, machine
from mmdeploy_ext.engines.registry import BASELINE, COMPILED, DEFAULT, ENGINES, engines_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.bench.benchmark.measure import Run

    Runs = Mapping[str, Sequence[Run]]


# The model in `torch.compile`, without an export.


BACKEND = 'inductor'
RECOMPILE_LIMIT = 64
"""Graphs per network: a head is called once per level, and the number of regions varies."""


def networks(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the largest parts of a detector with a `forward` and parameters."""
    for child in model.children():
        if next(child.parameters(), None) is None:
            continue
        if type(child).forward is torch.nn.Module.forward or isinstance(child, torch.nn.ModuleList):
            yield from networks(child)
        else:
            yield child


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """Copy of a model with networks that compile in their first run, inside `while_compiling`."""
    copied = copy.deepcopy(model)
    for part in networks(copied):
        part.forward = torch.compile(part.forward, backend=BACKEND)
    return copied


@contextlib.contextmanager
def while_compiling() -> Iterator[None]:
    """Freeze weights into the code of models that are compiled and run inside."""
    import torch._dynamo
    import torch._inductor.config
    from torch._inductor.utils import fresh_cache

    limits = torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT)
    with fresh_cache(), torch._inductor.config.patch(freezing=True), limits:
        yield


def first_run(run: Callable[[], object]) -> None:
    """Run a `compiled` model for the first time; that compiles it."""
    try:
        run()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = next((line for line in lines if 'rror' in line), lines[0] if lines else '')
        raise EngineError(f'torch.compile: {type(error).__name__}: {message}') from error


COUNT_TOLERANCE = 0.02
"""Relative difference of numbers of detections: scores near the threshold fall on either side."""


class Benchmark(abc.ABC):
    """One run of the tool on one model.

    Attributes:
        kind: 'images', 'stream' or 'sparse', as in `EngineInfo.runs`.
        models: plural name of the models in messages.
        foreign: attributes of options that do not apply.
        seconds: default of `--max-seconds` per group (0: no limit).
        threads: threads of the engines; only sparse backbones have several.
        detector: the model; set by `load`.
        files: label -> exported file or folder.
        batch: pictures, frames or sweeps in a sample.
        refused: files that engines refused: engine, label, file, reason.
    """

    kind: ClassVar[str]
    models: ClassVar[str]
    foreign: ClassVar[tuple[str, ...]]
    seconds: ClassVar[float] = 0
    detector: Any
    batch: int = 1

    def __init__(self, args: argparse.Namespace, engines: Sequence[str], ranks: Ranks) -> None:
        supported = engines_of(self.kind)
        unsupported = [name for name in engines if name not in supported]
        if unsupported:
            raise UsageError(
                f'--engines {",".join(unsupported)}: {self.models} run on {", ".join(supported)}'
            )
        self.args, self.engines, self.ranks = args, engines, ranks
        self.threads: Sequence[int] = (args.threads or max(cores() // self.ranks.size, 1),)
        self.files: dict[str, str] = {}
        self.notes: list[str] = []
        self.refused: list[dict[str, str]] = []

    # ---- what each kind of model defines

    @abc.abstractmethod
    def load(self) -> None:
        """Check the options, then load model and samples."""

    @abc.abstractmethod
    def export(self, folder: str) -> dict[str, str]:
        """Export the files to measure, if the user named none; return label -> path."""

    @abc.abstractmethod
    def groups(self) -> dict[str, Sequence[Any]]:
        """Name -> samples that are measured together, again and again.

        The last group is the main one: memory is measured on it, and the chart shows it.
        """

    @abc.abstractmethod
    def torch_contenders(self, stack: contextlib.ExitStack) -> list[Contender]:
        """Contenders in eager PyTorch; the stack closes what they open."""

    @abc.abstractmethod
    def file_contenders(
        self, stack: contextlib.ExitStack, engine: str, label: str, path: str
    ) -> list[Contender]:
        """Contenders of an engine on a file; the stack closes what they open."""

    def compiled_run(self, stack: contextlib.ExitStack) -> Callable[[Any], Run]:
        """Function that runs the model on a sample after `torch.compile`."""
        raise NotImplementedError

    @abc.abstractmethod
    def input_shape(self) -> str:
        """Shape of a sample for the headline."""

    # ---- what all kinds share

    @contextlib.contextmanager
    def open_contenders(self) -> Iterator[list[Contender]]:
        """Open every engine on every file, PyTorch first."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='mm2onnx_benchmark_'))
            if not self.files and any(ENGINES[name].files for name in self.engines):
                exported = self.export(folder) if self.ranks.rank == 0 else None
                self.files = self.ranks.gather(exported)[0]
            compiled_copies, contenders = [], []
            if COMPILED in self.engines:  # the model is copied before clocks are put into it
                compiled_copies = self._open(stack, COMPILED, measure.COMPILED_FORM, '')
            if BASELINE in self.engines:
                contenders = self.torch_contenders(stack)
            contenders = [*contenders, *compiled_copies]
            for engine in (name for name in self.engines if ENGINES[name].files):
                for label, path in self.files.items():
                    contenders += self._open(stack, engine, label, path)
            if not contenders:
                reasons = map('{engine} {label} ({file}): {reason}'.format_map, self.refused)
                raise EngineError(
                    f'nothing to measure, because no engine runs any of the files: {"; ".join(reasons)}'
                )
            yield contenders

    def _open(self, stack: contextlib.ExitStack, engine: str, label: str, path: str) -> list[Contender]:
        try:
            with contextlib.ExitStack() as inner:
                if path:
                    contenders = self.file_contenders(inner, engine, label, path)
                else:
                    inner.enter_context(while_compiling())
                    contenders = [Contender(f'{engine} {label}', engine, label, self.compiled_run(inner))]
                stack.push(inner.pop_all())
        except Mm2OnnxError as error:
            if self.args.onnx and not self.args.skip_refused:
                raise
            self.refused.append(dict(engine=engine, label=label, file=path, reason=str(error)))
            return []
        return contenders

    def run(self) -> dict[str, Any]:
        """Measure all contenders; return the content of the JSON file."""
        groups, memories = self.groups(), {}
        main = next(reversed(groups))
        with self.open_contenders() as contenders:
            if self.ranks.rank == 0 and not self.args.no_memory and measure.is_supported():
                memories = {contender.name: self._memory(contender) for contender in contenders}
            with OtherLoad() as load:
                peak = measure.peak(self.threads[-1])
                runs = self._measure(contenders, groups)
            products = self._products(contenders, groups[main][-1])
        rows = []
        for name, group_runs in runs.items():
            of_files = products if name == main else None
            for row in measure.summarise(contenders, group_runs, self.batch, self.ranks.size, of_files):
                rows.append(
                    row | dict(input=name, memory=memories.get(row['name']) if name == main else None)
                )
        other_load = load.share if self.ranks.size == 1 else None
        detector = self.detector
        names = ('config', 'checkpoint', 'cfg_options', 'config_sha256', 'checkpoint_sha256')
        return dict(
            tool='benchmark',
            **{name: getattr(detector, name) for name in names},
            family=detector.family.name,
            input_shape=self.input_shape(),
            device=self.args.device,
            threads=self.threads[-1],
            processes=self.ranks.size,
            rounds=max(row['runs'] for row in rows),
            warmup=self.args.warmup,
            machine=machine(),
            peak_gmac_per_s=round(peak, 2),
            memory_method=measure.HOW,
            other_load=other_load,
            main_input=main,
            contenders=rows,
            refused=self.refused,
            notes=[*self.notes, *load_notes(other_load), *doubts(rows, main)],
        )

    def _products(self, contenders: Sequence[Contender], sample: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for contender in contenders:
            if contender.engine == DEFAULT.name and contender.file not in found:
                found[contender.file] = round(measure.products(lambda: contender.run(sample)), 3)  # noqa: B023
        return found

    def _memory(self, contender: Contender) -> dict[str, float]:
        words = dict(threads=contender.threads or self.threads[0], device='cpu')
        args = argparse.Namespace(**(vars(self.args) | words))
        files = {label: path for label, path in self.files.items() if path == contender.file}
        call = functools.partial(run_alone, type(self), args, contender.engine, files, contender.name)
        return measure.measure(call, contender.file or args.config)

    def _measure(
        self, contenders: Sequence[Contender], groups: Mapping[str, Sequence[Any]]
    ) -> dict[str, Runs]:
        from rich.progress import Progress

        args, ranks = self.args, self.ranks
        rounds = args.repeat_num * -(-args.max_iter // ranks.size)
        measured = {}
        with Progress(console=cli.stderr(), transient=True, disable=ranks.rank != 0) as bar:
            task = bar.add_task('measuring', total=rounds * len(groups))

            def on_round(index: int, runs: Runs) -> None:
                bar.advance(task)
                if ranks.rank == 0 and (index + 1) % args.log_interval == 0:
                    medians = ', '.join(
                        f'{name} {statistics.median(run.total_s for run in its_runs) * 1e3:.1f}'
                        for name, its_runs in runs.items()
                    )
                    line = f'Done round [{index + 1}/{rounds}], median ms per batch: {medians}'
                    bar.console.print(line, highlight=False, soft_wrap=True)

            for name, samples in groups.items():
                runs = measure.interleave(
                    contenders,
                    samples,
                    rounds,
                    warmup=args.warmup,
                    before_each=ranks.gather,
                    on_round=on_round,
                    seconds=self.seconds if args.max_seconds is None else args.max_seconds,
                )
                gathered = ranks.gather(runs)
                measured[name] = {
                    contender: [run for part in gathered for run in part[contender]] for contender in runs
                }
        return measured


def run_alone(
    kind: type[Benchmark], args: argparse.Namespace, engine: str, files: dict[str, str], name: str
) -> dict[str, float]:
    """Open one contender and run it on the first samples of the last group, for `memory.measure`."""
    import torch

    from mmdeploy_ext.families.base import load_families

    args.fuse_conv_bn, args.skip_refused = name == measure.FUSED, False
    torch.set_num_threads(args.threads)
    load_families()
    benchmark = kind(args, [engine], Ranks())
    benchmark.load()
    samples = list(benchmark.groups().values())[-1]
    if files:
        benchmark.files = files
        importlib.import_module(ENGINES[engine].package)
    baseline_kb, model = measure.reset_peak(), benchmark.detector.model
    if name == BASELINE:  # the others have weights of their own
        weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        baseline_kb -= weights // 1024
    with benchmark.open_contenders() as contenders:
        (contender,) = [contender for contender in contenders if contender.name == name]
        for index in range(measure.RUNS):
            contender.run(samples[index % len(samples)])
        return measure.used_since(baseline_kb)


def short_labels(paths: Sequence[str], *label_kinds: Sequence[str]) -> dict[str, str]:
    """Label -> path, by the first list of labels that are all different, else by path."""
    distinct = next((labels for labels in label_kinds if len(set(labels)) == len(paths)), paths)
    return dict(zip(distinct, paths, strict=True))


def doubts(rows: Sequence[dict[str, Any]], main: str) -> list[str]:
    """Notes on rows of the group `main` that found nothing, or too different numbers of objects."""
    counts = sorted(row['detections_per_image'] for row in rows if row['input'] == main)
    if counts[-1] == 0:
        return ['no detections on these images; the time of post-processing depends on detections']
    if counts[-1] - counts[0] > COUNT_TOLERANCE * counts[-1]:
        return [
            f'the contenders found {counts[0]:g} to {counts[-1]:g} detections per image, so the models '
            f'may differ; check with {tool("verify")}'
        ]
    return []
