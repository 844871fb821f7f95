"""Runs each config of a zoo in its own process, which may crash, hang or use up memory."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmdeploy_ext.contract.registry import registered
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.core.heap import keep_freed_memory, resident_bytes
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.zoo.config_proof import Settings, export_kinds_of, origin_digest, prove_config
from mmdeploy_ext.zoo.configs import Config
from mmdeploy_ext.zoo.records import (
    CRASH,
    EXPORT_KINDS,
    MAX_CHARACTERS,
    MEMORY,
    TIME,
    Outcome,
    Record,
    left_out_outcomes,
    portable,
    read_record,
)

POLL_S = 0.2
"""Seconds between two looks at the processes."""
LOG_LINES = 12
"""Last lines of its output that the record of a failed process has."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one process: `seconds` of wall time, and private memory in GiB (`gigabytes`).

    The memory of processes that it starts does not count.
    """

    seconds: float = 1800.0
    gigabytes: float = 6.0


class ConfigProcess:
    """The process that exports and proves one config.

    Below the folder `out` of the run, `records/` has a JSON file for each config, a file with the suffix
    '.unfinished' from the first export that ended until its process has, and `logs/` has the output of its
    process. An unfinished file and a log of an earlier run are removed first; its record stays until this
    process replaces it. `log`, `record_path` and `unfinished_path` are these files of the config, `start_s`
    is when it began, by `time.monotonic`, `export_kinds` are the exports of the run, in their order, and
    `is_done.value` is whether the process has written its record.
    """

    def __init__(self, config: Config, settings: Settings, out: Path) -> None:
        """Start the process with the settings of the run."""
        self.config, self.log = config, out / 'logs' / f'{config.slug}.txt'
        self.record_path = record_path(config, out)
        self.unfinished_path = self.record_path.with_suffix('.unfinished')
        self.export_kinds = [kind for kind in EXPORT_KINDS if kind in settings.export_kinds]
        for path in (self.unfinished_path, self.log):  # of another run: this process may die before it writes
            path.unlink(missing_ok=True)
        context = multiprocessing.get_context('fork')  # the libraries take seconds to import
        self.is_done = context.Value('b', False, lock=False)  # a killed process would keep a lock
        self.process = context.Process(target=self._run, args=(settings,))
        self.process.start()
        self.start_s = time.monotonic()

    def _run(self, settings: Settings) -> None:
        """Prove the config; runs in the child."""
        import torch

        os.setsid()
        torch.set_num_threads(1)
        keep_freed_memory()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        earlier = read_record(self.record_path)
        record = prove_config(
            self.config, settings, earlier, lambda record: record.write(self.unfinished_path)
        )
        record.write(self.record_path)
        self.is_done.value = True
        self.unfinished_path.unlink(missing_ok=True)
        sys.stdout.flush()

    def exceeded_limit(self, limits: Limits) -> str:
        """Return the reason of the limit that the process exceeds; '' if it exceeds none."""
        if time.monotonic() - self.start_s > limits.seconds:
            return TIME
        max_bytes, pid = limits.gigabytes * 2**30, self.process.pid
        # private pages are part of the resident set; counting them stops the process for 0.1 s per 4 GB
        return MEMORY if resident_bytes(pid) > max_bytes and private_bytes(pid) > max_bytes else ''

    def end(self) -> None:
        """Kill the process and what it started, but for processes with a session or a group of their own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.join()

    def record(self, limit: str) -> Record:
        """Return the record of the ended process; one of a process that failed is made and written here.

        The failure becomes the outcome of the first export without one, among those of `export_kinds` that
        the config's family has. If all have one, or the process had written its record, it failed after its
        work, and the outcomes stay; so do earlier ones of exports that this run leaves out. `limit` is the
        reason for which it was killed; '' if it ended by itself.
        """
        status, earlier = self.process.exitcode, read_record(self.record_path)
        left_out = left_out_outcomes(earlier, self.export_kinds)
        empty = Record(self.config.name, self.config.parts, **left_out)
        if self.is_done.value:
            self.unfinished_path.unlink(missing_ok=True)
            return earlier or empty
        record = read_record(self.unfinished_path) or empty
        lines = self.log.read_text(errors='replace').splitlines()[-LOG_LINES:] if self.log.is_file() else []
        status_text = f'signal {-status}' if status is not None and status < 0 else f'exit status {status}'
        last_words = portable('\n'.join(lines))[-(MAX_CHARACTERS - len(status_text) - 1) :]
        failure = Outcome(reason=limit or CRASH, why=f'{status_text}\n{last_words}'.rstrip())
        tried = [kind for kind in _export_kinds(record) if kind in self.export_kinds]
        if open_kinds := [kind for kind in tried if getattr(record, kind) is None]:
            record = dataclasses.replace(record, **{open_kinds[0]: failure})
        record.write(self.record_path)
        self.unfinished_path.unlink(missing_ok=True)
        return record


def _export_kinds(record: Record) -> tuple[str, ...]:
    """Return the exports that the config of a record can have; all of them before its family is known."""
    has_family = record.family in registered()
    return export_kinds_of(FAMILIES[record.family]) if has_family else EXPORT_KINDS


def finished_records(group: Sequence[Config], settings: Settings, out: Path) -> list[Record]:
    """Return the records of a group, configs that are the same model, if the first has one that still holds.

    That is one of an earlier run into `out`; the others get copies of it, which are written here. The list is
    empty if there is none, if a wanted export was not tried, if its process died or exceeded a limit, or if
    anything changed that the outcome follows from.
    """
    record = read_record(record_path(group[0], out))
    if record is None:
        return []
    kinds = _export_kinds(record) if record.family in registered() else EXPORT_KINDS[:1]
    outcomes = [getattr(record, kind) for kind in kinds if kind in settings.export_kinds]
    made_from = origin_digest(group[0], settings)
    if not (made_from and outcomes and all(entry and entry.made_from == made_from for entry in outcomes)):
        return []
    return [record, *_write_same_models(record, group[1:], out)]


def _write_same_models(record: Record, same_models: Sequence[Config], out: Path) -> list[Record]:
    """Write, and return, the records of configs that the model of a record is the same as."""
    records = []
    for config in same_models:
        records.append(dataclasses.replace(record, config=config.name, same_as=record.config))
        records[-1].write(record_path(config, out))
    return records


def import_libraries(config: Config) -> None:
    """Import the libraries of a config, which forked processes then have.

    A config that no family exports imports less; its own process says why.
    """
    with contextlib.suppress(UsageError):
        find_family(load_config(config.path))


def run_all(
    groups: Sequence[Sequence[Config]], settings: Settings, out: Path, jobs: int, limits: Limits
) -> Iterator[list[Record]]:
    """Yield the records of each group of configs as soon as they are known.

    `jobs` processes, one or more, run at a time; a group has at least one config. The configs of a group are
    the same model to test, of which only the first is proven. A process that exceeds one of the limits is
    killed. `ConfigProcess` says what is written below `out`.
    """
    for name in ('records', 'logs'):
        (out / name).mkdir(parents=True, exist_ok=True)
    waiting = list(groups)
    running: list[tuple[ConfigProcess, Sequence[Config]]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                config, *same_models = waiting.pop(0)
                running.append((ConfigProcess(config, settings, out), same_models))
            time.sleep(POLL_S)
            for entry in list(running):
                job, same_models = entry
                limit = job.exceeded_limit(limits) if job.process.is_alive() else ''
                if limit or not job.process.is_alive():
                    running.remove(entry)
                    job.end()
                    record = job.record(limit)
                    yield [record, *_write_same_models(record, same_models, out)]
    finally:
        for job, _ in running:
            job.end()


def record_path(config: Config, out: Path) -> Path:
    """Return the path of the record of a config in a run's folder."""
    return out / 'records' / f'{config.slug}.json'


def private_bytes(pid: int | None) -> int:
    """Return the bytes that a process wrote and does not share with its parent; 0 if they cannot be read.

    `pid` is that of the process, None of one that has not started.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines():
            if line.startswith('Private_Dirty:'):
                return int(line.split()[1]) * 1024
    return 0
