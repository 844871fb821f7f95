"""Checks in processes of their own, which may crash or hang."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.graph.reduce import run
from mmdeploy_ext.graph.reduce.case import Candidate
from mmdeploy_ext.graph.reduce.checks import Check, Stopped
from mmdeploy_ext.graph.reduce.folder import save_npz

DEFAULT_TIMEOUT_S = 60.0
MOST_TIMEOUTS = 3
"""Candidates on which a command may run into its time limit before the reduction is stopped."""
NOT_RUNNABLE = (126, 127)
"""Exit statuses of a shell that cannot run a command, or does not find it."""


@contextlib.contextmanager
def _stored(candidate: Candidate) -> Iterator[Path]:
    """Yield the file of a candidate for another process; inputs.npz lies beside it."""
    with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
        model = Path(folder, 'model.onnx')
        files.write(candidate.model, model)
        save_npz(model.with_name('inputs.npz'), candidate.feeds)
        yield model


class Crash(Check):
    """ONNX Runtime refuses to load or run the model, or crashes; in a process of its own."""

    kind = 'crash'
    meaning = 'ONNX Runtime refuses to load or run the model, or the process dies'

    def __init__(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__()
        self.timeout_s = timeout_s

    def _outcome(self, candidate: Candidate) -> str:
        with _stored(candidate) as model:
            script = shutil.copyfile(run.__file__, model.with_name('run.py'))
            status, output = run_limited([sys.executable, str(script), '--child'], self.timeout_s)
        if status is None:
            return 'does not end'
        last = output.strip().splitlines()[-1:] or ['dies']
        return f'signal {-status}' if status < 0 else last[0]

    def check_whole(self, whole: Candidate) -> bool:
        """Remember how it ends."""
        self.outcome = self._outcome(whole)
        return self.outcome != 'runs'

    def shows(self, candidate: Candidate) -> bool:
        """See `meaning`; it has to end the way the whole model does."""
        return self._outcome(candidate) == self.outcome

    def facts(self) -> dict[str, Any]:
        """Add the time limit."""
        return dict(super().facts(), timeout=self.timeout_s)


class Command(Check):
    """A shell command, called with the file of the candidate: exit status 0 says that the fault is there."""

    kind = 'command'
    timeouts, last = 0, ''

    def __init__(self, command: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__()
        self.command, self.timeout_s = command, timeout_s
        self.meaning = f'the command {command!r} exits with 0'

    def _status(self, candidate: Candidate) -> int | None:
        with _stored(candidate) as model:
            words = shlex.quote(str(model))
            text = self.command.replace('{}', words) if '{}' in self.command else f'{self.command} {words}'
            status, output = run_limited(text, self.timeout_s)
        lines = output.strip().splitlines()
        self.last = f'it exited with {status}' + (f' and said {lines[-1]!r}' if lines else '')
        return status

    def check_whole(self, whole: Candidate) -> bool:
        """Refuse a command that cannot be run or does not end."""
        status = self._status(whole)
        what = f'--check {self.command!r}:'
        if status is None:
            many = f'{self.timeout_s:g} s on the whole model and was stopped'
            raise UsageError(f'{what} did not end within {many}; give it more time with --timeout')
        if status in NOT_RUNNABLE:
            raise UsageError(f'{what} the shell cannot run it: {self.last}')
        return status == 0

    def shows(self, candidate: Candidate) -> bool:
        """Return whether the command exits with 0; out of time is no."""
        status = self._status(candidate)
        if status is None:
            self.timeouts += 1
            if self.timeouts >= MOST_TIMEOUTS:
                raise Stopped(f'the check did not end within {self.timeout_s:g} s {self.timeouts} times')
        return status == 0

    def why_not(self) -> str:
        """Say what the command did."""
        return f'the check says no to the whole model: {self.last}'

    def facts(self) -> dict[str, Any]:
        """Add the command."""
        return dict(super().facts(), command=self.command)


def run_limited(command: str | list[str], seconds: float) -> tuple[int | None, str]:
    """Run a text for the shell, or words; after a time limit it is killed with its child processes.

    Returns:
        Exit status, negative for a signal, None when it was stopped; and what it printed.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return status, log.read().decode(errors='replace')
