"""Runs each config in its own process, which may crash, hang or use up memory."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dev.zoo.config_proof import Settings, origin_digest, prove_config
from dev.zoo.configs import Config
from dev.zoo.records import CRASH, MAX_CHARACTERS, MEMORY, TIME, Outcome, Record, portable, read_record
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.base.heap import keep_freed_memory, resident_bytes
from mmdeploy_ext.families.base import find_family

POLL_S = 0.2
LOG_LINES = 12
"""Last lines of the log in a failed process's record."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one process: wall seconds, and resident memory in GiB."""

    seconds: float = 1800.0
    gigabytes: float = 6.0


class ConfigProcess:
    """The process that exports and proves one config.

    In `out`, `records/` has a JSON file per config, written after each export; `logs/` has the output.
    """

    def __init__(self, config: Config, settings: Settings, out: Path) -> None:
        self.config, self.settings = config, settings
        self.log, self.record_path = out / 'logs' / f'{config.slug}.txt', record_path(config, out)
        self.log.unlink(missing_ok=True)
        Record(config.name, config.parts).write(self.record_path)
        context = multiprocessing.get_context('fork')  # the libraries take seconds to import
        self.process = context.Process(target=self._run)
        self.process.start()
        self.start_s = time.monotonic()

    def _run(self) -> None:
        import torch

        os.setsid()
        torch.set_num_threads(1)
        keep_freed_memory()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        record = prove_config(self.config, self.settings, lambda done: done.write(self.record_path))
        record.write(self.record_path)

    def exceeded_limit(self, limits: Limits) -> str:
        """Return the reason of an exceeded limit, or ''."""
        if time.monotonic() - self.start_s > limits.seconds:
            return TIME
        return MEMORY if resident_bytes(self.process.pid) > limits.gigabytes * 2**30 else ''

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()

    def record(self, limit: str) -> Record:
        """Return the record of the ended process; its unfinished export has failed."""
        status, record = self.process.exitcode, read_record(self.record_path)
        record = record or Record(self.config.name, self.config.parts)
        if status == 0 and not limit:
            return record
        lines = self.log.read_text(errors='replace').splitlines()[-LOG_LINES:] if self.log.is_file() else []
        status_text = f'signal {-status}' if status is not None and status < 0 else f'exit status {status}'
        last_words = portable('\n'.join(lines))[-(MAX_CHARACTERS - len(status_text) - 1) :]
        failure = Outcome(reason=limit or CRASH, why=f'{status_text}\n{last_words}'.rstrip())
        unfinished = [kind for kind in self.settings.export_kinds if getattr(record, kind) is None]
        if unfinished:
            record = dataclasses.replace(record, **{unfinished[0]: failure})
        record.write(self.record_path)
        return record


def finished_records(group: Sequence[Config], settings: Settings, out: Path) -> list[Record]:
    """Return the records of configs of one model, if the first has a valid record."""
    record = read_record(record_path(group[0], out))
    if record is None or not record.made_from or record.made_from != origin_digest(group[0], settings):
        return []
    outcomes = [outcome for outcome in (record.fixed, record.dynamic) if outcome]
    if any(outcome.reason in (TIME, MEMORY, CRASH) for outcome in outcomes):
        return []
    return [record, *_write_same_models(record, group[1:], out)]


def _write_same_models(record: Record, same_models: Sequence[Config], out: Path) -> list[Record]:
    records = []
    for config in same_models:
        records.append(dataclasses.replace(record, config=config.name, same_as=record.config))
        records[-1].write(record_path(config, out))
    return records


def import_libraries(config: Config) -> None:
    with contextlib.suppress(UsageError):
        find_family(load_config(config.path))


def run_all(
    groups: Sequence[Sequence[Config]], settings: Settings, out: Path, jobs: int, limits: Limits
) -> Iterator[list[Record]]:
    """Yield the records of each group; its first config is proven."""
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
    return out / 'records' / f'{config.slug}.json'
