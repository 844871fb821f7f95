"""The loop of all benchmarks: contenders take turns on the same samples, in one process."""

from __future__ import annotations

import abc
import contextlib
import statistics
import tempfile
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.benchmark import compiled, measure, memory
from mmdeploy_ext.benchmark.machine import QUIET_SHARE, cores, machine
from mmdeploy_ext.benchmark.measure import Contender
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import EngineError, Mm2OnnxError, UsageError
from mmdeploy_ext.engines.registry import BASELINE, COMPILED, ENGINES, engines_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mmdeploy_ext.benchmark.measure import Run
    from mmdeploy_ext.core.distributed import Ranks

    Runs = Mapping[str, Sequence[Run]]
    """Name of a contender -> its runs."""

COUNT_TOLERANCE = 0.02
"""Relative difference of numbers of detections: a score near the threshold falls on either side of it."""


class Benchmark(abc.ABC):
    """One run of the tool on one model.

    Attributes:
        kind: 'images', 'stream' or 'sparse', as in `EngineInfo.runs`.
        models: name of these models in messages, in the plural.
        foreign: attributes of options that do not apply to these models.
        seconds: default of `--max-seconds` per group (0: no limit).
        threads: threads of the engines; sparse backbones alone have several.
        deployment: the model; set by `load`.
        files: label -> exported file or folder, given by the user or exported for the run.
        batch: pictures, frames or sweeps in a sample.
        refused: files that engines refused: engine, label, file, reason.
    """

    kind: ClassVar[str]
    models: ClassVar[str]
    foreign: ClassVar[tuple[str, ...]]
    seconds: ClassVar[float] = 0
    deployment: Any
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
        """Export the files to measure to a folder, since the user named none; return label -> path."""

    @abc.abstractmethod
    def groups(self) -> list[Sequence[Any]]:
        """Return groups of samples; round i of a group runs its sample i, and begins again at the end."""

    @abc.abstractmethod
    def torch_contenders(self, stack: contextlib.ExitStack) -> list[Contender]:
        """Return the contenders in eager PyTorch; the stack closes what they open."""

    @abc.abstractmethod
    def file_contenders(
        self, stack: contextlib.ExitStack, engine: str, label: str, path: str
    ) -> list[Contender]:
        """Return the contenders of an engine on a file; the stack closes what they open."""

    def compiled_run(self, stack: contextlib.ExitStack) -> Callable[[Any], Run]:
        """Return a function that runs the model on a sample after `torch.compile`."""
        raise NotImplementedError

    @abc.abstractmethod
    def memory_call(self, contender: Contender) -> Callable[[], tuple[int, object]]:
        """Return a function that loads and runs a contender in a child process, see `memory.measure`."""

    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return the entries of the JSON file about the input."""

    def rows(
        self, contenders: Sequence[Contender], runs: Runs, memories: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the row of each contender in the JSON file, from the runs of one group."""
        rows = measure.summarise(contenders, runs, self.batch, self.ranks.size)
        for row in rows:
            row['memory'] = memories.get(row['name'])
        return rows

    def result(
        self, contenders: Sequence[Contender], runs: Sequence[Runs], memories: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the content of the JSON file; `runs` has the runs of each group of samples."""
        (group_runs,), load = runs, self.other_load(runs)
        rows = self.rows(contenders, group_runs, memories)
        return dict(
            self.common_facts(runs),
            **self.facts(),
            contenders=rows,
            forms=measure.compare_forms(contenders, group_runs),
            notes=[*self.notes, *doubts(rows, load)],
        )

    # ---- what all kinds share

    @contextlib.contextmanager
    def open_contenders(self) -> Iterator[list[Contender]]:
        """Open every engine on every file, PyTorch first; if the user named no file, export before."""
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
                    f'nothing is left to measure, every engine refused every file: {"; ".join(reasons)}'
                )
            yield contenders

    def _open(self, stack: contextlib.ExitStack, engine: str, label: str, path: str) -> list[Contender]:
        try:
            with contextlib.ExitStack() as inner:
                if path:
                    contenders = self.file_contenders(inner, engine, label, path)
                else:
                    inner.enter_context(compiled.while_compiling())
                    contenders = [Contender(f'{engine} {label}', engine, label, self.compiled_run(inner))]
                stack.push(inner.pop_all())
        except Mm2OnnxError as error:
            if self.args.onnx and not self.args.skip_refused:
                raise
            self.refused.append(dict(engine=engine, label=label, file=path, reason=str(error)))
            return []
        return contenders

    def run(self) -> dict[str, Any]:
        memories = {}
        with self.open_contenders() as contenders:
            if self.ranks.rank == 0 and not self.args.no_memory and memory.is_supported():
                for contender in contenders:
                    name = contender.file or self.args.config
                    memories[contender.name] = memory.measure(self.memory_call(contender), name)
            runs = self._measure(contenders)
            return self.result(contenders, runs, memories)

    def _measure(self, contenders: Sequence[Contender]) -> list[Runs]:
        from rich.progress import Progress

        args, ranks, groups = self.args, self.ranks, self.groups()
        rounds = args.repeat_num * -(-args.max_iter // ranks.size)
        group_runs = []
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

            spare = args.spare_rounds if ranks.size == 1 else 0
            for samples in groups:
                runs = measure.interleave(
                    contenders,
                    samples,
                    rounds,
                    warmup=args.warmup,
                    before_each=ranks.gather,
                    on_round=on_round,
                    spare=spare,
                    seconds=self.seconds if args.max_seconds is None else args.max_seconds,
                )
                gathered = ranks.gather(runs)
                group_runs.append({name: [run for part in gathered for run in part[name]] for name in runs})
        return group_runs

    def source(self) -> memory.Source:
        """Return the arguments with which a child process loads the model, always on the CPU."""
        model = self.deployment
        return memory.Source(model.config, model.checkpoint, model.cfg_options, self.threads[0])

    def other_load(self, runs: Sequence[Runs]) -> float | None:
        """Return the mean share of the cores that other processes used; None if several processes measure."""
        return measure.mean_load(runs) if self.ranks.size == 1 else None

    def common_facts(self, runs: Sequence[Runs]) -> dict[str, Any]:
        """Return the entries of every JSON file about model, machine and rounds."""
        deployment, args = self.deployment, self.args
        names = ('config', 'checkpoint', 'cfg_options', 'config_sha256', 'checkpoint_sha256')
        return dict(
            tool='benchmark',
            **{name: getattr(deployment, name) for name in names},
            family=deployment.family.name,
            device=args.device,
            threads=self.threads[0],
            processes=self.ranks.size,
            rounds=len(next(iter(runs[0].values()))),
            warmup=args.warmup,
            spare_rounds=args.spare_rounds,
            machine=machine(),
            memory_method=memory.HOW,
            other_load=self.other_load(runs),
            preprocess_ms=None,
            profiles={},
            refused=self.refused,
        )


def short_labels(paths: Sequence[str], *label_kinds: Sequence[str]) -> dict[str, str]:
    """Return label -> path, by the first of the lists of labels that are all different, else by path."""
    distinct = next((labels for labels in label_kinds if len(set(labels)) == len(paths)), paths)
    return dict(zip(distinct, paths, strict=True))


def load_notes(other_load: float | None) -> list[str]:
    """Return a note if other processes used more than `QUIET_SHARE` of the cores."""
    if other_load is None or other_load <= QUIET_SHARE:
        return []
    return [f'other processes used {other_load:.0%} of the cores meanwhile: measure again when it is quiet']


def doubts(contenders: Sequence[dict[str, Any]], other_load: float | None = None) -> list[str]:
    """Return notes about load, nothing found, and numbers of detections that differ too much."""
    counts, notes = sorted(row['detections_per_image'] for row in contenders), load_notes(other_load)
    if counts[-1] == 0:
        notes += ['nothing was found on these images: the cost of post-processing depends on what is found']
    elif counts[-1] - counts[0] > COUNT_TOLERANCE * counts[-1]:
        notes.append(
            f'the contenders found {counts[0]:g} to {counts[-1]:g} detections per image: are they the same '
            f'model? {tool("verify")} tells'
        )
    return notes
