"""Interleaved timing: contenders, rounds, and the statistics of their times."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import multiprocessing
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.base.errors import EngineError, UsageError
from mmdeploy_ext.base.source_code import versions
from mmdeploy_ext.bench.precision.damage import counted
from mmdeploy_ext.engines.base import record_runs
from mmdeploy_ext.engines.registry import BASELINE, ENGINES, build_backend, gpu_name
from mmdeploy_ext.graphs.io.files import load
from mmdeploy_ext.graphs.run import open_session
from mmdeploy_ext.upstream import compat

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


# Memory of one contender, measured in a process of its own.


RUNS = 3
"""Runs of a contender in its process."""
STATUS = Path('/proc/self/status')
HOW = (
    'each contender alone in a fresh process, resident set from /proc/self/status; peak: highest while '
    'opening and running three samples; resident: after them; both without the memory used before, and '
    "without PyTorch's weights"
)


def is_supported() -> bool:
    return STATUS.is_file()


def _status_kb(key: str) -> int:
    for line in STATUS.read_text(encoding='ascii', errors='replace').splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1])
    raise KeyError(key)


def reset_peak() -> int:
    """Reset the peak of this process and return its resident set in kB; the peak if it cannot be reset."""
    with contextlib.suppress(OSError, AttributeError):  # what was freed would hide what is opened next
        ctypes.CDLL('libc.so.6').malloc_trim(0)
    try:
        Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
    except OSError:
        return max(_status_kb('VmRSS'), _status_kb('VmHWM'))
    return _status_kb('VmRSS')


def used_since(baseline_kb: int) -> dict[str, float]:
    """`peak_mb` and `resident_mb`, MiB above a result of `reset_peak`."""
    return dict(
        peak_mb=round((_status_kb('VmHWM') - baseline_kb) / 1024, 1),
        resident_mb=round((_status_kb('VmRSS') - baseline_kb) / 1024, 1),
    )


def _child(parent: Connection) -> None:
    try:
        compat.apply()  # imports nothing; the received call may import what has to be patched
        parent.send(parent.recv()())
    except Exception:
        parent.send(traceback.format_exc(limit=3))


def measure(call: Callable[[], dict[str, float]], name: str) -> dict[str, float]:
    """Run `call`, which opens and runs the contender `name`, in a fresh process; return its result."""
    context = multiprocessing.get_context('spawn')
    # sent by a pipe: an argument of the process blocks for ever if the process ends before it has read it
    child, parent = context.Pipe()
    process = context.Process(target=_child, args=(parent,), daemon=True)
    process.start()
    parent.close()
    try:
        child.send(call)
        answer = child.recv()
    except (EOFError, OSError):
        answer = 'the process ended without an answer'
    process.join()
    if isinstance(answer, str):
        raise EngineError(
            f'memory of {name}: {answer.strip().splitlines()[-1]} (exit status {process.exitcode}); use '
            '--no-memory to skip it'
        )
    return answer


# How many products a graph has, and how many a second this machine computes at most.


SIDES = 512, 1024, 2048
"""Rows and columns of the matrices of `peak`."""
PEAK_RUNS = 5


def products(run: Callable[[], object]) -> float:
    """Return the products of convolutions and matrices that ONNX Runtime's graphs compute in a run, 1e9."""
    with record_runs() as runs:
        run()
    return sum(sum(count for _, count in counted(load(one.path), one.inputs).values()) for one in runs) / 1e9


def peak(threads: int) -> float:
    """Return the most products of float32 a second of ONNX Runtime's MatMul, 1e9."""
    return max(_matmul(side, threads) for side in SIDES)


def _matmul(side: int, threads: int) -> float:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, side, side)).astype(np.float32)
    node = helper.make_node('MatMul', ['left', 'right'], ['out'])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in ('left', 'out')]
    graph = helper.make_graph([node], 'matmul', ends[:1], ends[1:], [numpy_helper.from_array(right, 'right')])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    session = open_session(model, 'all', threads)
    seconds = []
    for _ in range(PEAK_RUNS):
        start = time.perf_counter()
        session.run(None, dict(left=left))
        seconds.append(time.perf_counter() - start)
    return side**3 / min(seconds) / 1e9


# The time of the parts of a PyTorch model, without changing the model.


class PartClock:
    """Context manager that measures the time in functions of objects; nested calls count for the outer one.

    Attributes:
        methods: part -> (object, name of its function); the functions are timed inside the block.
        seconds: part -> seconds so far.
    """

    def __init__(self, methods: Mapping[str, Sequence[tuple[object, str]]]) -> None:
        self.methods, self.seconds = methods, dict.fromkeys(methods, 0.0)
        self._inside = False
        self._originals: list[tuple[object, str, Any]] = []

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

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Seconds per part since `before`, a copy of `seconds`."""
        return {part: self.seconds[part] - start for part, start in before.items()}

    def __enter__(self) -> PartClock:
        for part, pairs in self.methods.items():
            for owner, name in pairs:
                self._originals.append((owner, name, vars(owner).get(name)))
                setattr(owner, name, self._timed(part, getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._originals:  # backwards, since a function may be in two parts
            owner, name, original = self._originals.pop()
            if original is None:
                delattr(owner, name)  # the class has it
            else:
                setattr(owner, name, original)


# The machine that measures, and how much of it other processes use.


SIMD = ('avx2', 'avx_vnni', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'avx512_fp16', 'amx_int8', 'amx_bf16')
"""Instruction sets that decide how fast matrix products are, as Linux names them."""
QUIET_SHARE = 0.05
"""Figures are doubtful above this share."""


def cores() -> int:
    """Cores that this process may use; Linux only."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Entry of the machine in a benchmark's JSON file."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    names = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    cpu = next(names, platform.processor() or platform.machine())
    flags = next((line for line in lines if line.startswith('flags')), '').split()
    package_versions = versions()
    with contextlib.suppress(ImportError):
        import openvino

        package_versions['openvino'] = openvino.__version__
    return dict(
        cpu=cpu,
        cores=cores(),
        simd=[name for name in SIMD if name in flags],
        gpu=gpu_name(),
        system=platform.platform(),
        python=platform.python_version(),
        versions=package_versions,
    )


def _busy_s() -> float | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path('/proc/stat').read_text(encoding='ascii').split('\n', 1)[0].split()[1:]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
        return (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')
    return None


def load_notes(other_load: float | None) -> list[str]:
    """A note if other processes used more than `QUIET_SHARE` of the cores."""
    if other_load is None or other_load <= QUIET_SHARE:
        return []
    return [
        f'other processes used {other_load:.0%} of the cores during the measurement: repeat it on an idle '
        'machine'
    ]


class OtherLoad:
    """Context manager that measures the `share` of the cores (0..1, or None) that other processes use."""

    share: float | None = None

    def __enter__(self) -> OtherLoad:
        self.start = time.perf_counter(), time.process_time(), _busy_s()
        return self

    def __exit__(self, *_: object) -> None:
        start_s, start_cpu_s, start_busy_s = self.start
        busy_s = _busy_s()
        if busy_s is not None and start_busy_s is not None:
            others_s = (busy_s - start_busy_s) - (time.process_time() - start_cpu_s)
            available_s = (time.perf_counter() - start_s) * (os.cpu_count() or 1)
            self.share = round(min(max(others_s / available_s, 0.0), 1.0), 4)


COMPILED_FORM = 'compiled'
FUSED = 'torch fused'
"""Contender with BatchNorms folded into the convolutions."""
MIN_ROUNDS = 3
"""Rounds that no time limit cuts off."""
SETTLE_S = 0.02
"""Pause between two runs: threads of the last engine spin for some milliseconds and would slow the next."""
WARMUP_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Run:
    """Times of one run of one contender.

    Attributes:
        total_s: from the prepared sample to the detections, or the map of a sparse backbone.
        network_s: the graphs or networks alone; None if unknown.
        detections: in the whole sample; number of voxels of a sparse backbone.
        parts_s: part ('backbone', or 'cpu' for the CPU time of the process) -> seconds.
        fed_bytes: bytes of inputs besides images; None if unknown.
    """

    total_s: float
    network_s: float | None
    detections: int
    parts_s: Mapping[str, float] = dataclasses.field(default_factory=dict)
    fed_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Contender:
    """A model on an engine, from a prepared sample to detections, or from voxels to a map.

    Attributes:
        name: unique name for tables; eager PyTorch is `registry.BASELINE`.
        engine: name in `registry.ENGINES`.
        form: form or contract of the file; '' for PyTorch, `COMPILED_FORM` for `torch.compile`.
        run: runs the model on a sample and returns the times.
        file: exported file or folder, or ''.
        threads: threads of a sparse backbone; 0: the benchmark's number.
    """

    name: str
    engine: str
    form: str
    run: Callable[[Any], Run]
    file: str = ''
    threads: int = 0


def timed(call: Callable[[Any], object]) -> Callable[[Any], Run]:
    """A `Contender.run` that times `call`, also the CPU time of the process."""

    def run(sample: Any) -> Run:
        start, start_cpu = time.perf_counter(), time.process_time()
        call(sample)
        return Run(time.perf_counter() - start, None, 0, parts_s={'cpu': time.process_time() - start_cpu})

    return run


def interleave(
    contenders: Sequence[Contender],
    samples: Sequence[Any],
    rounds: int,
    warmup: int = 0,
    before_each: Callable[[], object] = lambda: None,
    on_round: Callable[[int, Mapping[str, list[Run]]], None] = lambda index, runs: None,
    seconds: float = 0,
) -> dict[str, list[Run]]:
    """Run every contender once per round; return name -> one run per counted round.

    Args:
        contenders: at least one, with unique names.
        samples: round i takes sample i modulo their number, warm-up first.
        rounds: number of counted rounds.
        warmup: number of rounds before them.
        before_each: called before every run; processes that measure in step wait for each other there.
        on_round: called after every counted round with its index and the runs so far.
        seconds: after `MIN_ROUNDS`, no round begins so long after the first one; 0 runs all rounds.
    """
    runs: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    if len(runs) != len(contenders) or not runs:
        names = [contender.name for contender in contenders]
        raise UsageError(f'contenders {names}: expected unique names, at least one')
    start = time.perf_counter()
    for index in range(-warmup, rounds):
        if index == 0:
            start = time.perf_counter()
        if seconds and index >= MIN_ROUNDS and time.perf_counter() - start > seconds:
            break
        first = index % len(contenders)  # so that every contender is first, second ... equally often
        for contender in (*contenders[first:], *contenders[:first]):
            before_each()
            time.sleep(SETTLE_S)
            run = contender.run(samples[(index + warmup) % len(samples)])
            if index >= 0:
                runs[contender.name].append(run)
        if index >= 0:
            on_round(index, runs)
    return runs


def time_files(
    float_file: str,
    int8_file: str,
    batches: Sequence[Mapping[str, np.ndarray]],
    rounds: int,
    threads: int = 0,
    engine: str = 'onnxruntime',
) -> dict[str, Any]:
    """Run a float ONNX file and the INT8 file made of it in turns; only graphs are timed.

    `batches` are feeds by input name, images (B, C, H, W) first; `threads` 0 leaves the number to the engine,
    one of `registry.QUANTISED`.

    Returns:
        `ratio`, INT8 time over float time per round; `cpu_ratio`, of the CPU time, which other processes
        hardly change on one thread; `float_ms`, `int8_ms`, all by `spread`; and the settings.
    """
    info = ENGINES[engine]
    with contextlib.ExitStack() as stack:
        contenders = []
        for name, path in (('float', float_file), ('int8', int8_file)):
            backend = stack.enter_context(build_backend(info.backend, path, threads=threads, **info.shared))
            run = timed(backend.infer)
            contenders.append(Contender(name, backend.engine, backend.metadata.form, run, backend.path))
        with OtherLoad() as load:
            runs = interleave(contenders, batches, rounds, WARMUP_ROUNDS)
    pairs = list(zip(runs['int8'], runs['float'], strict=True))
    height, width = next(iter(batches[0].values())).shape[-2:]
    return dict(
        ratio=ratio(runs['int8'], runs['float']),
        cpu_ratio=spread((int8.parts_s['cpu'] / base.parts_s['cpu'] for int8, base in pairs), 4),
        float_ms=milliseconds(run.total_s for run in runs['float']),
        int8_ms=milliseconds(run.total_s for run in runs['int8']),
        rounds=rounds,
        engine=engine,
        threads=threads,
        height=height,
        width=width,
        other_load=load.share,
        quiet_share=QUIET_SHARE,
    )


def spread(values: Iterable[float], digits: int = 3) -> dict[str, float]:
    """Median, quartiles, median absolute deviation, minimum and maximum of at least one value."""
    array = np.asarray(list(values), np.float64)
    q1, median, q3 = np.percentile(array, [25, 50, 75])
    figures = dict(
        median=median, q1=q1, q3=q3, mad=np.median(np.abs(array - median)), min=array.min(), max=array.max()
    )
    return {name: round(float(value), digits) for name, value in figures.items()}


def ratio(runs: Iterable[Run], base_runs: Iterable[Run]) -> dict[str, float]:
    """`spread` of the times of `runs` over times of `base_runs`, round by round."""
    return spread((run.total_s / base.total_s for run, base in zip(runs, base_runs, strict=True)), 4)


def milliseconds(seconds: Iterable[float | None]) -> dict[str, float] | None:
    """`spread` in milliseconds, or None if one time is None."""
    values = list(seconds)
    return None if None in values else spread(value * 1e3 for value in values)


def summarise(
    contenders: Sequence[Contender],
    runs: Mapping[str, Sequence[Run]],
    batch: int,
    processes: int = 1,
    work: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """A dict per contender: times in ms, ratio to PyTorch round by round, images per second.

    `work`: file -> 1e9 products of a run, see `work.py`.
    """
    rows = []
    for contender in contenders:
        its_runs = runs[contender.name]
        total_ms = milliseconds(run.total_s for run in its_runs)
        postprocess_s = (None if run.network_s is None else run.total_s - run.network_s for run in its_runs)
        network_ms = milliseconds(run.network_s for run in its_runs)
        gmac = (work or {}).get(contender.file)
        row = dict(
            name=contender.name,
            engine=contender.engine,
            form=contender.form,
            file=contender.file,
            runs=len(its_runs),
            total_ms=total_ms,
            network_ms=network_ms,
            postprocess_ms=milliseconds(postprocess_s),
            gmac=gmac,
            gmac_per_s=round(gmac * 1e3 / network_ms['median'], 2) if gmac and network_ms else None,
            images_per_s=round(batch * processes * 1e3 / total_ms['median'], 3),
            detections_per_image=round(statistics.mean(run.detections for run in its_runs) / batch, 2),
            ratio_to_torch=ratio(its_runs, runs[BASELINE]) if BASELINE in runs else None,
            samples_ms=[round(run.total_s * 1e3, 3) for run in its_runs],
            parts_ms={
                part: round(statistics.median(run.parts_s[part] for run in its_runs) * 1e3, 3)
                for part in its_runs[0].parts_s
            },
            fed_bytes=its_runs[0].fed_bytes,
            threads=contender.threads,
        )
        rows.append(row)
    return rows
