"""Processes of a distributed run, as if started by hand, forked from one that has imported the libraries."""

import functools
import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER, FORKED = (multiprocessing.get_context(name) for name in ('forkserver', 'fork'))
"""Processes with mmdet imported; and copies of this one, for scripts that compute nothing."""


@functools.cache
def serve() -> None:
    """Start the process that others are forked from; Python 3.11 gives it no search path."""
    SERVER.set_forkserver_preload(['mmcv_and_mmdet'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / 'tests/support'))))
        patch.setenv('OMP_NUM_THREADS', '1')
        forkserver.ensure_running()


def run_ranks(
    folder: Path, lines: Sequence[Sequence[object]], size: int = 0, timeout: float = 150, start: Any = SERVER
) -> list:
    """Run a script and its words per rank; return status (None: it was ended), stdout and stderr of each."""
    if start is SERVER:
        serve()
    else:
        import mmcv_and_mmdet  # noqa: F401
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    place = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE=str(size or len(lines)))
    started = []
    for rank, line in enumerate(lines):
        given = (folder / f'rank{rank}', [str(word) for word in line], dict(place, RANK=str(rank)))
        started.append(start.Process(target=_run, args=given))
        started[-1].start()
    try:
        for process in started:
            process.join(timeout)
        status = [process.exitcode for process in started]
    finally:
        for process in started:
            process.kill()
    ends = [[folder / f'rank{rank}{end}' for end in ('.out', '.err')] for rank in range(len(lines))]
    return [(code, *(path.read_text() for path in pair)) for code, pair in zip(status, ends, strict=True)]


def _run(path: Path, words: list[str], environment: dict[str, str]) -> None:
    for number, end in ((1, '.out'), (2, '.err')):
        os.dup2(os.open(path.with_suffix(end), os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, 'w', closefd=False) for number in (1, 2))  # not pytest's
    os.environ.update(environment, CUDA_VISIBLE_DEVICES='')
    os.chdir(REPOSITORY)
    sys.argv = words
    runpy.run_path(words[0], run_name='__main__')
