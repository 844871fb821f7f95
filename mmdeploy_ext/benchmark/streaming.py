"""Streaming models: one frame in PyTorch and by each contract, interleaved, part by part.

Every contender runs the same drive with a memory of its own; its time begins with prepared images and ends
with decoded boxes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.benchmark import measure, memory
from mmdeploy_ext.benchmark.engines import ENGINES
from mmdeploy_ext.benchmark.measure import Contender, Run
from mmdeploy_ext.benchmark.result import common_facts, doubts, mean_load
from mmdeploy_ext.core.errors import Mm2OnnxError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.runtime.frames import Frame, Stepper

PARTS = ('backbone', 'embedding', 'head')
TORCH_BAR, FORK_BAR = 0.36, 0.95
"""Largest time of a frame by the deploy contract, as part of eager PyTorch's and of the fork contract's; set
for R50 at 704x256 on a CPU, where the convolutions of the backbone are most of either."""
FED_BAR = 64_000
"""Bytes given to the engine per frame besides the images."""


class PartClock:
    """Times methods of objects while it is active; nested calls count for the outer one only."""

    def __init__(self, methods: Mapping[str, Sequence[tuple[object, str]]]) -> None:
        """Keep what is timed.

        Args:
            methods: part -> (object, method name) pairs.
        """
        self.methods = methods
        self.seconds = dict.fromkeys(methods, 0.0)
        self._inside = False

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return method(*args, **kwargs)
            self._inside, start = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds[part] += time.perf_counter() - start

        return run

    def __enter__(self) -> PartClock:
        """Put the clocks in as attributes of the objects themselves."""
        for part, pairs in self.methods.items():
            for owner, name in pairs:
                object.__setattr__(owner, name, self._timed(part, getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        """Take them out again."""
        for pairs in self.methods.values():
            for owner, name in pairs:
                object.__delattr__(owner, name)


def torch_contender(stepper: Stepper, clock: PartClock) -> Contender:
    """Return the published model in eager PyTorch; what is neither backbone nor embedding is the head."""

    def run(frame: Frame) -> Run:
        before, start = dict(clock.seconds), time.perf_counter()
        found = stepper.step(frame).detections
        total = time.perf_counter() - start
        parts = {part: clock.seconds[part] - before[part] for part in before}
        parts['head'] = total - sum(parts.values())
        return Run(total, None, len(found), parts_s=parts)

    return Contender(measure.BASELINE, 'torch', '', run)


def runner_contender(stepper: Any, engine: str, form: str, file: str) -> Contender:
    """Return exported files on an engine.

    Args:
        stepper: of `SequenceFamily.runner`; it has `graph_seconds()` and `fed_bytes`.
        engine: of `ENGINES`.
        form: its contract.
        file: folder or file.
    """

    def run(frame: Frame) -> Run:
        before, start = stepper.graph_seconds(), time.perf_counter()
        found = stepper.step(frame).detections
        total = time.perf_counter() - start
        parts = {part: seconds - before[part] for part, seconds in stepper.graph_seconds().items()}
        return Run(total, sum(parts.values()), len(found), parts_s=parts, fed_bytes=stepper.fed_bytes)

    return Contender(f'{engine} {form}', engine, form, run, file)


@dataclasses.dataclass(frozen=True)
class StreamPlan:
    """What one run of the tool measures.

    Attributes:
        args: of the command line.
        deployment: the model.
        threads: of every engine.
        frames: of the drive, in order; run again from its start where there are more rounds.
        files: contract -> path.
        register: imports the projects, for child processes.
        engines: names, of `KINDS['stream']`.
        refused: what an engine did not take, with `--skip-refused`: engine, label, file, reason.
    """

    args: argparse.Namespace
    deployment: Deployment
    threads: int
    frames: Sequence[Frame]
    files: dict[str, str]
    register: Callable[[], None]
    engines: Sequence[str]
    refused: list[dict[str, str]] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def open_contenders(plan: StreamPlan) -> Iterator[list[Contender]]:
    """Open PyTorch, and every file on every engine."""
    family, model, found = plan.deployment.family, plan.deployment.model, []
    with contextlib.ExitStack() as stack:
        if 'torch' in plan.engines:
            clock = stack.enter_context(PartClock(family.timed_methods(model)))
            found.append(torch_contender(family.reference(model), clock))
        for engine in (name for name in plan.engines if name != 'torch'):
            for label, path in plan.files.items():
                found += _open_files(plan, stack, engine, label, path)
        measure.check_any(found, plan.refused)
        yield found


def _open_files(
    plan: StreamPlan, stack: contextlib.ExitStack, engine: str, label: str, path: str
) -> list[Contender]:
    """Open an engine on the files of an export.

    One that does not take them is noted with `--skip-refused`, or when the user named no file; with
    `--skip-refused` also one that cannot run them, with an empty memory and with one.
    """
    from mmdeploy_ext.deploy.sequence_files import read_files

    try:
        with contextlib.ExitStack() as opened:
            paths, options = read_files(path).paths, ENGINES[engine].stream(plan.threads)
            runner = opened.enter_context(plan.deployment.family.runner(paths, options))
            if plan.args.skip_refused:
                for frame in plan.frames[:2]:
                    runner.step(frame)
                runner.reset()
            stack.push(opened.pop_all())
    except Mm2OnnxError as error:
        if plan.args.onnx and not plan.args.skip_refused:
            raise
        plan.refused.append(dict(engine=engine, label=label, file=path, reason=str(error)))
        return []
    return [runner_contender(runner, engine, label, path)]


def measure_memory(plan: StreamPlan, contenders: Sequence[Contender]) -> dict[str, dict[str, float]]:
    """Measure every contender in a process of its own, on the first frames of the drive."""
    start = len(plan.frames) - plan.args.warmup
    frames = [*plan.frames[start:], *plan.frames[:start]]
    model = memory.MemoryJob(
        plan.threads,
        plan.register,
        plan.deployment.config,
        plan.deployment.checkpoint,
        plan.deployment.cfg_options,
        frames=frames[: memory.RUNS],
    )
    return {
        contender.name: memory.measure(
            dataclasses.replace(model, stream=contender.file, engine=contender.engine)
            if contender.file
            else model
        )
        for contender in contenders
    }


def part_rows(contenders: Sequence[Contender], runs: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Return medians of the parts in ms, and bytes fed in the median frame, per contender."""
    rows = []
    for contender in contenders:
        mine = runs[contender.name]
        fed = [run.fed_bytes for run in mine if run.fed_bytes is not None]
        rows.append(
            dict(
                name=contender.name,
                parts_ms={
                    part: round(statistics.median(run.parts_s[part] for run in mine) * 1e3, 3)
                    for part in mine[0].parts_s
                },
                fed_bytes=int(statistics.median(fed)) if fed else None,
            )
        )
    return rows


def contract_ratio(
    contenders: Sequence[Contender], runs: Mapping[str, Sequence[Run]]
) -> dict[str, Any] | None:
    """Return the time of the deploy contract against the fork's in ONNX Runtime; None unless both ran."""
    names = {one.form: one.name for one in contenders if one.engine == 'onnxruntime'}
    if not {'deploy', 'fork'} <= names.keys():
        return None
    pairs = zip(runs[names['deploy']], runs[names['fork']], strict=True)
    return measure.spread((one.total_s / other.total_s for one, other in pairs), 4)


def bar_rows(rows: Sequence[Mapping[str, Any]], ratio: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return what the deploy contract in ONNX Runtime is held to, as far as it was measured.

    Args:
        rows: of the contenders, with their parts.
        ratio: of `contract_ratio`.

    Returns:
        Rows of name, value, bar (at most) and passed.
    """
    found = next((row for row in rows if (row['engine'], row['form']) == ('onnxruntime', 'deploy')), None)
    if found is None:
        return []
    torch = found['ratio_to_torch']
    values = (
        ('frame, against PyTorch', torch and torch['median'], TORCH_BAR),
        ('frame, against the fork contract', ratio and ratio['median'], FORK_BAR),
        ('ms of position embedding in the median frame', found['parts_ms'].get('embedding'), 0.0),
        ('bytes fed besides the images', found['fed_bytes'], FED_BAR),
    )
    return [
        dict(name=name, value=value, bar=bar, passed=value <= bar)
        for name, value, bar in values
        if value is not None
    ]


def make_result(
    plan: StreamPlan,
    contenders: Sequence[Contender],
    runs: Mapping[str, Sequence[Run]],
    memories: Mapping[str, dict[str, float]],
) -> dict[str, Any]:
    """Return the content of the JSON file."""
    other_load = mean_load(runs)
    rows = measure.summarise(contenders, runs, 1)
    for row, parts in zip(rows, part_rows(contenders, runs), strict=True):
        row.update(parts, memory=memories.get(row['name']))
    ratio = contract_ratio(contenders, runs)
    return dict(
        common_facts(plan.deployment, plan.args, plan.threads, runs),
        input_shape='x'.join(map(str, plan.frames[0].images.shape)),
        processes=1,
        other_load=other_load,
        contenders=rows,
        forms=[],
        refused=plan.refused,
        deploy_to_fork=ratio,
        bars=bar_rows(rows, ratio),
        notes=doubts(rows, other_load),
    )


def export_contracts(deployment: Deployment, folder: str) -> dict[str, str]:
    """Export every contract that the family has."""
    from mmdeploy_ext.deploy import deployment as deploy
    from mmdeploy_ext.deploy.sequence_files import export_sequence

    family, files = deployment.family, {}
    for contract in next(one.choices for one in family.options if one.name == 'contract'):
        path = str(Path(folder) / (f'{contract}.onnx' if contract == 'fork' else contract))
        options = deploy.resolve_opset(family.choose(contract=contract, opset=0), deployment.model)
        export_sequence(deployment, options, path)
        files[contract] = path
    return files
