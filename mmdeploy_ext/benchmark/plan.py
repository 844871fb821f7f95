"""One benchmark for every kind of model: contenders take turns on the same samples, in one process.

A contender's time begins with prepared samples and ends with results in numpy. What differs between pictures,
frames of a drive and sets of voxels is in `images.py`, `streams.py` and `sparse.py`: a `Plan` each.
"""

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

COUNT_TOLERANCE = 0.02
"""Numbers of detections may differ by this part: a score beside the threshold falls on either side of it."""


class Plan(abc.ABC):
    """What one run of the tool measures.

    Attributes:
        kind: of `EngineInfo.runs`.
        models: what its models are called in messages.
        foreign: options of `benchmark.py` that it does not have.
        seconds: after which no round of a group begins, where the user says nothing; 0 runs all.
        args: of the command line; `cfg_options` are parsed.
        threads: of the engines on trial.
        deployment: the model; known after `load`.
        files: label -> exported file or folder; what was given, or exported for the run.
        batch: samples that a run takes together.
        notes: what has to be said about the files.
        refused: what engines did not take: engine, label, file, reason.
    """

    kind: ClassVar[str]
    models: ClassVar[str]
    foreign: ClassVar[tuple[str, ...]]
    seconds: ClassVar[float] = 0
    deployment: Any
    batch: int = 1

    def __init__(
        self, args: argparse.Namespace, engines: Sequence[str], ranks: Ranks
    ) -> None:
        """Refuse engines that this kind of model does not run on: a UsageError names those that there are."""
        known = engines_of(self.kind)
        unknown = [name for name in engines if name not in known]
        if unknown:
            raise UsageError(f'--engines {",".join(unknown)}: {self.models} run on {", ".join(known)}')
        self.args, self.engines, self.ranks = args, engines, ranks
        self.threads: Sequence[int] = (args.threads or max(cores() // self.ranks.size, 1),)
        self.files: dict[str, str] = {}
        self.notes: list[str] = []
        self.refused: list[dict[str, str]] = []

    # ---- what a kind of model gives

    @abc.abstractmethod
    def load(self) -> None:
        """Refuse what can be refused, then load the model."""

    @abc.abstractmethod
    def export(self, folder: str) -> dict[str, str]:
        """Export what is measured when no file was given; returns label -> path."""

    @abc.abstractmethod
    def groups(self) -> list[Sequence[Any]]:
        """Return groups of samples; round i of a group runs its sample i, and begins again at the end."""

    @abc.abstractmethod
    def torch_contenders(self, stack: contextlib.ExitStack) -> list[Contender]:
        """Return the model in eager PyTorch."""

    @abc.abstractmethod
    def file_contenders(
        self, stack: contextlib.ExitStack, engine: str, label: str, path: str
    ) -> list[Contender]:
        """Open an engine on a file; with `--skip-refused` also run it, to see whether it can."""

    def compiled_run(self, stack: contextlib.ExitStack) -> Callable[[Any], Run]:
        """Return what runs the model in `torch.compile`, compiled; an EngineError says why it cannot be."""
        raise NotImplementedError

    @abc.abstractmethod
    def memory_call(self, contender: Contender) -> Callable[[], tuple[int, object]]:
        """Return what a child process calls; see `memory.measure`."""

    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what the JSON file says about the input."""

    def complete(self, row: dict[str, Any], contender: Contender, runs: Sequence[Run]) -> None:
        """Put into the row of a contender what this kind of model has beside times."""
        return

    def rows(
        self, contenders: Sequence[Contender], runs: Runs, memories: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Return what the JSON file says of each contender."""
        rows = measure.summarise(contenders, runs, self.batch, self.ranks.size)
        for row, contender in zip(rows, contenders, strict=True):
            row['memory'] = memories.get(contender.name)
            self.complete(row, contender, runs[contender.name])
        return rows

    def result(
        self, contenders: Sequence[Contender], runs: Sequence[Runs], memories: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the content of the JSON file."""
        (mine,), load = runs, self.other_load(runs)
        rows = self.rows(contenders, mine, memories)
        return dict(
            self.common_facts(runs),
            **self.facts(),
            contenders=rows,
            forms=measure.compare_forms(contenders, mine),
            notes=[*self.notes, *doubts(rows, load)],
        )

    # ---- what all kinds share

    @contextlib.contextmanager
    def opened(self) -> Iterator[list[Contender]]:
        """Open every engine on every file, PyTorch first; files that nobody gave are exported before."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='mm2onnx_benchmark_'))
            if not self.files and any(ENGINES[name].files for name in self.engines):
                exported = self.export(folder) if self.ranks.rank == 0 else None
                self.files = self.ranks.gather(exported)[0]
            copied = []
            if COMPILED in self.engines:  # before clocks are put into the model
                copied = self._open(stack, COMPILED, measure.COMPILED_FORM, '')
            found = [*(self.torch_contenders(stack) if BASELINE in self.engines else ()), *copied]
            for engine in (name for name in self.engines if ENGINES[name].files):
                for label, path in self.files.items():
                    found += self._open(stack, engine, label, path)
            if not found:
                reasons = map('{engine} {label} ({file}): {reason}'.format_map, self.refused)
                raise EngineError(
                    f'nothing is left to measure, every engine refused every file: {"; ".join(reasons)}'
                )
            yield found

    def _open(self, stack: contextlib.ExitStack, engine: str, label: str, path: str) -> list[Contender]:
        """Open one file; what is refused is noted with `--skip-refused`, or when the user named no file."""
        try:
            with contextlib.ExitStack() as mine:
                if path:
                    found = self.file_contenders(mine, engine, label, path)
                else:
                    mine.enter_context(compiled.while_compiling())
                    found = [Contender(f'{engine} {label}', engine, label, self.compiled_run(mine))]
                stack.push(mine.pop_all())
        except Mm2OnnxError as error:
            if self.args.onnx and not self.args.skip_refused:
                raise
            self.refused.append(dict(engine=engine, label=label, file=path, reason=str(error)))
            return []
        return found

    def run(self) -> dict[str, Any]:
        """Measure memory, then times; returns the content of the JSON file."""
        memories = {}
        with self.opened() as contenders:
            if self.ranks.rank == 0 and not self.args.no_memory and memory.is_supported():
                for one in contenders:
                    what = one.file or self.args.config
                    memories[one.name] = memory.measure(self.memory_call(one), what)
            runs = self._measure(contenders)
            return self.result(contenders, runs, memories)

    def _measure(self, contenders: Sequence[Contender]) -> list[Runs]:
        """Run this rank's share of the rounds; returns per group the runs of all ranks, in turn."""
        from rich.progress import Progress

        args, ranks, groups = self.args, self.ranks, self.groups()
        rounds = args.repeat_num * -(-args.max_iter // ranks.size)
        found = []
        with Progress(console=cli.stderr(), transient=True, disable=ranks.rank != 0) as bar:
            task = bar.add_task('measuring', total=rounds * len(groups))

            def on_round(index: int, runs: Runs) -> None:
                bar.advance(task)
                if ranks.rank == 0 and (index + 1) % args.log_interval == 0:
                    medians = {
                        name: statistics.median(run.total_s for run in mine) for name, mine in runs.items()
                    }
                    line = ', '.join(f'{name} {median * 1e3:.1f}' for name, median in medians.items())
                    line = f'Done round [{index + 1}/{rounds}], median ms per batch: {line}'
                    bar.console.print(line, highlight=False, soft_wrap=True)

            spare = args.spare_rounds if ranks.size == 1 else 0
            limits = args.warmup, ranks.gather, on_round, spare, args.max_seconds or self.seconds
            for samples in groups:
                mine = measure.interleave(contenders, samples, rounds, *limits)
                gathered = ranks.gather(mine)
                found.append({name: [run for part in gathered for run in part[name]] for name in mine})
        return found

    def source(self) -> memory.Source:
        """Return where a child process has the model from."""
        model = self.deployment
        given = model.config, model.checkpoint, model.cfg_options
        return memory.Source(*given, self.threads[0])

    def other_load(self, runs: Sequence[Runs]) -> float | None:
        """Return the part of the cores that other processes used, 0..1; None where not known."""
        return measure.mean_load(runs) if self.ranks.size == 1 else None

    def common_facts(self, runs: Sequence[Runs]) -> dict[str, Any]:
        """Return what every JSON file says about model, machine and rounds."""
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


def short_labels(paths: Sequence[str], *kinds: Sequence[str]) -> dict[str, str]:
    """Return label -> path: labels of the first kind that tells all files apart, else the paths."""
    chosen = next((labels for labels in kinds if len(set(labels)) == len(paths)), paths)
    return dict(zip(chosen, paths, strict=True))


def busy(other_load: float | None) -> list[str]:
    """Say that other processes made the figures doubtful."""
    if other_load is None or other_load <= QUIET_SHARE:
        return []
    return [f'other processes used {other_load:.0%} of the cores meanwhile: measure again when it is quiet']


def doubts(contenders: Sequence[dict[str, Any]], other_load: float | None = None) -> list[str]:
    """Say what makes the figures doubtful."""
    counts, found = sorted(row['detections_per_image'] for row in contenders), busy(other_load)
    if counts[-1] == 0:
        found += ['nothing was found on these images: the cost of post-processing depends on what is found']
    elif counts[-1] - counts[0] > COUNT_TOLERANCE * counts[-1]:
        found.append(
            f'the contenders found {counts[0]:g} to {counts[-1]:g} detections per image: are they the same '
            f'model? {tool("verify")} tells'
        )
    return found


def bar_rows(values: Sequence[tuple[str, float | None, float]]) -> list[dict[str, Any]]:
    """Return rows of name, value, bar (at most) and passed, of what was measured."""
    return [
        dict(name=name, value=value, bar=bar, passed=value <= bar)
        for name, value, bar in values
        if value is not None
    ]
