"""Interleaved rounds, their stages and ratios.

All contenders run in one process and take turns: every round runs each of them once, in an order that
rotates, so that a machine that becomes slower or warmer does so for all. A contender's time begins with
prepared images and ends with detections in numpy, whatever part of the post-processing its graph holds.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.benchmark.machine import QUIET_SHARE, OtherLoad
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.engines.registry import BASELINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

COMPILED_FORM = 'compiled'
"""Of `torch.compile`, which runs no file."""
LEAST_ROUNDS = 3
"""That count, however short the time is."""
SETTLE_S = 0.02
"""Pause between two runs: threads of the last engine spin for some milliseconds and would slow the next."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of one contender.

    Attributes:
        total_s: from prepared images to detections.
        network_s: until the network (or the graph) has given its tensors; None where that cannot be told.
        found: detections in the batch.
        other_load: part of the cores that other processes used in this round, 0..1; None where not known.
        parts_s: part of a streaming model -> seconds.
        fed_bytes: given to the engine besides the images.
    """

    total_s: float
    network_s: float | None
    found: int
    other_load: float | None = None
    parts_s: Mapping[str, float] = dataclasses.field(default_factory=dict)
    fed_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something that takes a batch of prepared images and gives detections.

    Attributes:
        name: for tables; unique.
        engine: its name in `registry.ENGINES`.
        form: what its graph holds of the post-processing; '' for PyTorch.
        file: the ONNX file, '' for PyTorch.
        threads: where contenders of one engine differ in them.
    """

    name: str
    engine: str
    form: str
    run: Callable[[Any], Run]
    file: str = ''
    threads: int = 0


def timed(call: Callable[[Any], object]) -> Callable[[Any], Run]:
    """Return what runs a call and times it; its part 'cpu' is the time on cores."""

    def run(sample: Any) -> Run:
        start, cpu = time.perf_counter(), time.process_time()
        call(sample)
        return Run(time.perf_counter() - start, None, 0, parts_s={'cpu': time.process_time() - cpu})

    return run


def rotated(contenders: Sequence[Contender], index: int) -> list[Contender]:
    """Return the order of round `index`: every contender is first, second ... equally often."""
    first = index % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def interleave(
    contenders: Sequence[Contender],
    batches: Sequence[Any],
    rounds: int,
    warmup: int = 0,
    before_each: Callable[[], None] = lambda: None,
    on_round: Callable[[int, Mapping[str, list[Run]]], None] = lambda index, runs: None,
    spare: int = 0,
    seconds: float = 0,
) -> dict[str, list[Run]]:
    """Run every contender once per round; return name -> one run per round.

    Args:
        contenders: with unique names.
        batches: what contenders run (prepared images, or a frame); round i takes batch i modulo their number.
        rounds: that count.
        warmup: rounds before them.
        before_each: called before every run (a barrier, when several processes measure).
        on_round: called after every round that counts, with its index and the runs so far.
        spare: rounds that may be run again because other processes used more than `QUIET_SHARE` of the cores.
        seconds: after which no more round begins, once `LEAST_ROUNDS` count; 0 runs all.
    """
    runs: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    if len(runs) != len(contenders) or not runs:
        raise UsageError(
            f'contenders {[one.name for one in contenders]}: expected unique names, at least one'
        )
    index, start = -warmup, time.perf_counter()
    while index < rounds:
        if index == 0:
            start = time.perf_counter()
        if seconds and index >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
        found = _one_round(rotated(contenders, index), batches[index % len(batches)], before_each)
        if index >= 0 and spare > 0 and any((run.other_load or 0) > QUIET_SHARE for run in found.values()):
            spare -= 1
            continue
        index += 1
        if index > 0:
            for name, mine in runs.items():
                mine.append(found[name])
            on_round(index - 1, runs)
    return runs


def _one_round(
    contenders: Iterable[Contender], batch: Any, before_each: Callable[[], None]
) -> dict[str, Run]:
    """Run each contender once; every run says what others used of the cores in this round."""
    found = {}
    with OtherLoad() as load:
        for contender in contenders:
            before_each()
            time.sleep(SETTLE_S)
            found[contender.name] = contender.run(batch)
    return {name: dataclasses.replace(run, other_load=load.share) for name, run in found.items()}


def spread(values: Iterable[float], digits: int = 3) -> dict[str, float]:
    """Return median, quartiles, median absolute deviation, least and largest of some figures."""
    array = np.asarray(list(values), np.float64)
    q1, median, q3 = np.percentile(array, [25, 50, 75])
    figures = dict(
        median=median, q1=q1, q3=q3, mad=np.median(np.abs(array - median)), min=array.min(), max=array.max()
    )
    return {name: round(float(value), digits) for name, value in figures.items()}


def ratio(mine: Iterable[Run], base: Iterable[Run]) -> dict[str, float]:
    """Return `spread` of the times of some runs through those of others, round by round."""
    return spread((run.total_s / other.total_s for run, other in zip(mine, base, strict=True)), 4)


def mean_load(groups: Iterable[Mapping[str, Sequence[Run]]]) -> float | None:
    """Return the part of the cores that other processes used, 0..1; None where not known."""
    loads = [run.other_load for runs in groups for mine in runs.values() for run in mine]
    return None if None in loads else round(statistics.mean(loads), 4)


def milliseconds(seconds: Iterable[float | None]) -> dict[str, float] | None:
    """Return `spread` in milliseconds; None when a run could not tell."""
    values = list(seconds)
    return None if None in values else spread(value * 1e3 for value in values)


def summarise(
    contenders: Sequence[Contender], runs: Mapping[str, Sequence[Run]], batch: int, processes: int = 1
) -> list[dict[str, Any]]:
    """Return one plain dict per contender: times, stages, ratio to PyTorch per round, images per second.

    `runs` are of `interleave`; when several processes measured at the same time, theirs one after the other.
    """
    rows = []
    for one in contenders:
        mine = runs[one.name]
        total = milliseconds(run.total_s for run in mine)
        rests = (None if run.network_s is None else run.total_s - run.network_s for run in mine)
        rows.append(
            dict(
                {key: getattr(one, key) for key in ('name', 'engine', 'form', 'file')},
                runs=len(mine),
                total_ms=total,
                network_ms=milliseconds(run.network_s for run in mine),
                postprocess_ms=milliseconds(rests),
                images_per_s=round(batch * processes * 1e3 / total['median'], 3),
                detections_per_image=round(statistics.mean(run.found for run in mine) / batch, 2),
                ratio_to_torch=ratio(mine, runs[BASELINE]) if BASELINE in runs else None,
                samples_ms=[round(run.total_s * 1e3, 3) for run in mine],
            )
        )
    return rows


def compare_forms(contenders: Sequence[Contender], runs: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Return what post-processing costs inside the graph: other forms against `raw`, per engine and round."""
    raws = {contender.engine: contender for contender in reversed(contenders) if contender.form == 'raw'}
    rows = []
    for contender in contenders:
        raw = raws.get(contender.engine)
        if raw is None or contender.form in ('', 'raw'):
            continue
        mine, base = ([run.network_s for run in runs[one.name]] for one in (contender, raw))
        ratios = [one / other for one, other in zip(mine, base, strict=True)]
        costs = spread((one - other) * 1e3 for one, other in zip(mine, base, strict=True))
        row = dict(graph=contender.name, raw=raw.name, ratio=spread(ratios, 4), postprocess_in_graph_ms=costs)
        rows.append(row)
    return rows


def repeated(call: Callable[[], object], runs: int) -> dict[str, float]:
    """Return `milliseconds` of a call; a first one that does not count comes before."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return milliseconds(seconds[1:])
