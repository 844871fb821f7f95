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

    Below the folder `out` of the run, `records/` has a JSON file for each config, written again after each
    export, and `logs/` has the output of its process.
    """

    def __init__(self, config: Config, settings: Settings, out: Path) -> None:
        self.config, self.log = config, out / 'logs' / f'{config.slug}.txt'
        self.record_path = record_path(config, out)
        self.export_kinds = [kind for kind in EXPORT_KINDS if kind in settings.export_kinds]
        self.log.unlink(missing_ok=True)
        left_out = left_out_outcomes(read_record(self.record_path), self.export_kinds)
        Record(config.name, config.parts, **left_out).write(self.record_path)
        context = multiprocessing.get_context('fork')  # the libraries take seconds to import
        self.process = context.Process(target=self._run, args=(settings,))
        self.process.start()
        self.start_s = time.monotonic()

    def _run(self, settings: Settings) -> None:
        import torch

        os.setsid()
        torch.set_num_threads(1)
        keep_freed_memory()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        earlier = read_record(self.record_path)
        record = prove_config(self.config, settings, earlier, lambda done: done.write(self.record_path))
        record.write(self.record_path)
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
        """Return the record of the ended process."""
        status, record = self.process.exitcode, read_record(self.record_path)
        if record is not None and status == 0 and not limit:
            return record
        record = record or Record(self.config.name, self.config.parts)
        lines = self.log.read_text(errors='replace').splitlines()[-LOG_LINES:] if self.log.is_file() else []
        status_text = f'signal {-status}' if status is not None and status < 0 else f'exit status {status}'
        last_words = portable('\n'.join(lines))[-(MAX_CHARACTERS - len(status_text) - 1) :]
        failure = Outcome(reason=limit or CRASH, why=f'{status_text}\n{last_words}'.rstrip())
        tried = [kind for kind in _export_kinds(record) if kind in self.export_kinds]
        if open_kinds := [kind for kind in tried if getattr(record, kind) is None]:
            record = dataclasses.replace(record, **{open_kinds[0]: failure})
        record.write(self.record_path)
        return record


def _export_kinds(record: Record) -> tuple[str, ...]:
    has_family = record.family in registered()
    return export_kinds_of(FAMILIES[record.family]) if has_family else EXPORT_KINDS


def finished_records(group: Sequence[Config], settings: Settings, out: Path) -> list[Record]:
    """Return the records of a group of configs of one model, if the first has a record that still holds."""
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
    records = []
    for config in same_models:
        records.append(dataclasses.replace(record, config=config.name, same_as=record.config))
        records[-1].write(record_path(config, out))
    return records


def import_libraries(config: Config) -> None:
    """Import the libraries of a config, which forked processes then have."""
    with contextlib.suppress(UsageError):
        find_family(load_config(config.path))


def run_all(
    groups: Sequence[Sequence[Config]], settings: Settings, out: Path, jobs: int, limits: Limits
) -> Iterator[list[Record]]:
    """Yield the records of each group of configs of one model, of which only the first is proven."""
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
    """Return the bytes that a process does not share with its parent; 0 if they cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines():
            if line.startswith('Private_Dirty:'):
                return int(line.split()[1]) * 1024
    return 0
