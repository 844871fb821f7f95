"""Configs in processes of their own, which may crash, hang or grow without end."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmdeploy_ext.zoo.configs import Config
from mmdeploy_ext.zoo.record import CRASH, LONGEST, MEMORY, TIME, Outcome, Record, portable, read_record
from mmdeploy_ext.zoo.rules import read_code
from mmdeploy_ext.zoo.subject import Settings, examine

POLL_S = 0.2
LOG_LINES = 12


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one process: wall time, and memory that is its own."""

    seconds: float = 1800.0
    gigabytes: float = 6.0


@dataclasses.dataclass
class _Running:
    config: Config
    process: multiprocessing.process.BaseProcess
    started: float


def run_all(
    configs: Sequence[Config], settings: Settings, out: Path, jobs: int, limits: Limits
) -> Iterator[Record]:
    """Yield the record of each config as it ends.

    Of configs that are the same model when they are tested, the first is looked at for all of them. Below
    `out`, `records/` has a JSON file for each config, `logs/` what its process printed.
    """
    for name in ('records', 'logs'):
        (out / name).mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[Config]] = {}
    for config in configs:
        groups.setdefault(config.test_digest or config.path, []).append(config)
    alike = {first.path: others for first, *others in groups.values()}
    read_code()
    waiting, running = [first for first, *_ in groups.values()], []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.pop(0), settings, out))
            time.sleep(POLL_S)
            for one in list(running):
                stopped = '' if not one.process.is_alive() else _over(one, limits)
                if stopped or not one.process.is_alive():
                    running.remove(one)
                    _end(one)
                    yield (record := _record(one, out, stopped))
                    yield from _of_others(record, alike[one.config.path], out)
    finally:
        for one in running:
            _end(one)


def _of_others(record: Record, others: Sequence[Config], out: Path) -> Iterator[Record]:
    """Yield and write the records of the configs that another one was looked at for."""
    for config in others:
        own = dataclasses.replace(record, config=config.name, same_as=record.config)
        own.write(_files(config, out)[0])
        yield own


def _start(config: Config, settings: Settings, out: Path) -> _Running:
    context = multiprocessing.get_context('fork')  # the libraries take seconds to import
    process = context.Process(target=_child, args=(config, settings, out))
    process.start()
    return _Running(config, process, time.monotonic())


def _child(config: Config, settings: Settings, out: Path) -> None:
    import torch

    os.setsid()
    torch.set_num_threads(1)
    log = os.open(out / 'logs' / f'{config.slug}.txt', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    path, unfinished = _files(config, out)
    unfinished.unlink(missing_ok=True)
    examine(config, settings, read_record(path), lambda record: record.write(unfinished)).write(path)
    unfinished.unlink(missing_ok=True)
    sys.stdout.flush()


def _files(config: Config, out: Path) -> tuple[Path, Path]:
    """Return where the record of a config is, and what is known of it while its process runs."""
    path = out / 'records' / f'{config.slug}.json'
    return path, path.with_suffix('.unfinished')


def _over(one: _Running, limits: Limits) -> str:
    """Return which limit a process is over; '' for none."""
    if time.monotonic() - one.started > limits.seconds:
        return TIME
    most, process = limits.gigabytes * 2**30, one.process.pid
    # counting what is its own takes 0.1 s for 4 GB, while its allocations wait; it is part of what is there
    return MEMORY if resident_bytes(process) > most and own_bytes(process) > most else ''


def resident_bytes(pid: int | None) -> int:
    """Return the memory of a process, with what it shares; or 0."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    return 0


def own_bytes(pid: int | None) -> int:
    """Return the memory that a process wrote and does not share, as it does what it was forked with; or 0."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines():
            if line.startswith('Private_Dirty:'):
                return int(line.split()[1]) * 1024
    return 0


def _end(one: _Running) -> None:
    """End a process with all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(one.process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        one.process.kill()
    one.process.join()


def _record(one: _Running, out: Path, stopped: str) -> Record:
    """Return what a process that has ended found, or why it did not."""
    path, unfinished = _files(one.config, out)
    status, none = one.process.exitcode, Record(one.config.name, one.config.parts)
    if not stopped and status == 0:
        return read_record(path) or none
    record = read_record(unfinished) or none
    log = out / 'logs' / f'{one.config.slug}.txt'
    lines = log.read_text(errors='replace').splitlines()[-LOG_LINES:] if log.is_file() else []
    how = f'signal {-status}' if status is not None and status < 0 else f'exit status {status}'
    outcome = Outcome(reason=stopped or CRASH, why=portable('\n'.join([how, *lines]))[-LONGEST:])
    place = 'fixed' if record.fixed is None else 'dynamic'
    record = dataclasses.replace(record, **{place: outcome})
    record.write(path)
    return record
