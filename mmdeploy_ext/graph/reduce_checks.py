"""Is the fault in this graph? Checks for `graph.py reduce`: built-in ones, and the user's own command."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import numpy_helper

from mmdeploy_ext.errors import UsageError
from mmdeploy_ext.graph import files, reduced_run
from mmdeploy_ext.graph.index import near
from mmdeploy_ext.graph.reduce_folder import save_npz

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

    from mmdeploy_ext.graph.reduce_case import Candidate

DEFAULT_TOLERANCE = 1e-4
DEFAULT_TIMEOUT_S = 60.0
MOST_TIMEOUTS = 3
"""Candidates on which a command may run into its time limit before the reduction is stopped."""
NOT_RUNNABLE = (126, 127)
"""Exit statuses of a shell that cannot run a command, or does not find it."""


class Stopped(Exception):
    """The reduction has to end here; the message says why."""


class Check:
    """Base of all checks.

    Attributes:
        kind: name of the built-in check, or 'command'.
        meaning: what the fault is, for people.
        outcome: what the whole model showed; the candidates have to show the same.
        tolerance: largest difference that is no fault, as a part of the largest expected value.
        rounding: see `reduce_case.Case`.
    """

    kind = ''
    meaning = ''
    rounding = False

    def __init__(self, tolerance: float = DEFAULT_TOLERANCE) -> None:
        self.tolerance = tolerance
        self.outcome = ''

    def shows(self, candidate: Candidate) -> bool:
        """Return whether a candidate shows the fault."""
        raise NotImplementedError

    def settle(self, whole: Candidate) -> bool:
        """Look at the whole model first: return whether it shows the fault, and remember which one."""
        return self.shows(whole)

    def expected(self, candidate: Candidate, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return what a right engine gives for a candidate; `values` are the recorded ones."""
        return {name: values[name] for name in candidate.outputs if name in values}

    def narrow(self) -> bool:
        """Look closer once no node can be left out; return whether there is anything closer to look at."""
        return False

    def widen(self) -> None:
        """Undo `narrow`: nothing was found that way."""

    def why_not(self) -> str:
        """Return what to say when the whole model does not show the fault."""
        return f'the whole model does not show it: {self.meaning}'

    def facts(self) -> dict[str, Any]:
        """Return what the saved case needs to know."""
        return dict(check=self.kind, tolerance=self.tolerance, outcome=self.outcome)


@contextlib.contextmanager
def _source(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Yield what ONNX Runtime opens: bytes, or a file when the model is too large for one message."""
    if files.serialised_size(model) <= files.PROTOBUF_LIMIT:
        yield model.SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
        path = Path(folder) / 'model.onnx'
        files.save_external(model, path, path.with_name('model.onnx.data'), checked=False)
        yield str(path)


def _compute(candidate: Candidate, optimized: bool) -> dict[str, np.ndarray] | None:
    """Return the outputs, None where ONNX Runtime refuses the model."""
    with _source(candidate.model) as source:
        try:
            found = reduced_run.compute(source, candidate.feeds, optimized)
        except Exception:
            return None
    return {name: found[name] for name in candidate.outputs}


class NotFinite(Check):
    """Finite inputs give NaN, or where the whole model gives no NaN, infinity.

    A NaN mostly comes from an infinity before it. So a part that gives NaN is narrowed down to what makes
    anything that is not finite from finite inputs and constants (a mask of -inf is no fault).
    """

    kind = 'nan'
    meaning = 'an output is not finite although all inputs are'
    rounding = True

    def __init__(self, tolerance: float = DEFAULT_TOLERANCE) -> None:
        super().__init__(tolerance)
        self._narrowed = False

    def _outcome(self, candidate: Candidate) -> str:
        given = dict(candidate.feeds)
        if self._narrowed:
            tensors = candidate.model.graph.initializer
            given.update((tensor.name, numpy_helper.to_array(tensor)) for tensor in tensors)
        if reduced_run.not_finite(given):
            return ''
        return reduced_run.not_finite(_compute(candidate, optimized=False) or {})

    def settle(self, whole: Candidate) -> bool:
        """Remember whether NaN or infinity is looked for."""
        if reduced_run.not_finite(whole.feeds):
            raise UsageError('--check nan: the inputs themselves are not finite; give finite ones')
        self.outcome = self._outcome(whole)
        return bool(self.outcome)

    def shows(self, candidate: Candidate) -> bool:
        """See `meaning`."""
        found = self._outcome(candidate)
        if self._narrowed and found:
            self.outcome = found
        return found == self.outcome

    def narrow(self) -> bool:
        """Take infinity for the fault, too."""
        self._narrowed = self.outcome == 'nan'
        return self._narrowed

    def widen(self) -> None:
        """Take NaN alone for the fault again."""
        self._narrowed = False


class Engines(Check):
    """ONNX Runtime's optimisations change the result."""

    kind = 'engines'
    meaning = 'ONNX Runtime with all optimisations differs from ONNX Runtime without any'

    def shows(self, candidate: Candidate) -> bool:
        """See `meaning`."""
        plain, fast = _compute(candidate, optimized=False), _compute(candidate, optimized=True)
        if plain is None or fast is None:
            return plain is not None and fast is None
        return reduced_run.difference(fast, plain) > self.tolerance

    def expected(self, candidate: Candidate, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return what ONNX Runtime gives without optimisations."""
        return _compute(candidate, optimized=False) or super().expected(candidate, values)


class Reference(Check):
    """ONNX Runtime and the reference implementation of ONNX differ."""

    kind = 'reference'
    meaning = 'ONNX Runtime differs from the reference implementation of ONNX'

    def shows(self, candidate: Candidate) -> bool:
        """See `meaning`."""
        got, expected = _compute(candidate, optimized=True), self._evaluate(candidate)
        if got is None or expected is None:
            return False
        return reduced_run.difference(got, expected) > self.tolerance

    @staticmethod
    def _evaluate(candidate: Candidate) -> dict[str, np.ndarray] | None:
        from onnx.reference import ReferenceEvaluator

        try:
            with np.errstate(all='ignore'):
                found = ReferenceEvaluator(candidate.model).run(None, candidate.feeds)
        except Exception:
            return None
        return dict(zip(candidate.outputs, found, strict=True))

    def expected(self, candidate: Candidate, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return what the reference implementation gives."""
        return self._evaluate(candidate) or super().expected(candidate, values)


class Differs(Check):
    """A part that is fed with another model's values gives other values than that model has there."""

    kind = 'differs'
    meaning = 'fed with the values of the other model, the graph gives other ones than it'
    rounding = True

    def __init__(self, tolerance: float, other: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Take the recorded values of both models; tensors are the same that have the same name."""
        super().__init__(tolerance)
        self.values = {
            name: value.astype(own[name].dtype)
            for name, value in other.items()
            if isinstance(own.get(name), np.ndarray) and isinstance(value, np.ndarray)
        }

    def shows(self, candidate: Candidate) -> bool:
        """See `meaning`."""
        wanted = {name: self.values[name] for name in candidate.outputs if name in self.values}
        if not wanted:
            return False
        got = _compute(candidate, optimized=False)
        return got is not None and reduced_run.difference(got, wanted) > self.tolerance

    def expected(self, candidate: Candidate, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the other model's values."""
        return super().expected(candidate, self.values)


class _Files:
    """A candidate as files for another process."""

    def __init__(self, folder: Path, candidate: Candidate) -> None:
        self.model, self.inputs = folder / 'model.onnx', folder / 'inputs.npz'
        if files.serialised_size(candidate.model) > files.PROTOBUF_LIMIT:
            files.save_external(candidate.model, self.model, folder / 'model.onnx.data', checked=False)
        else:
            self.model.write_bytes(candidate.model.SerializeToString())
        save_npz(self.inputs, candidate.feeds)


class Crash(Check):
    """ONNX Runtime refuses to load or run the model, or dies; in a process of its own."""

    kind = 'crash'
    meaning = 'ONNX Runtime refuses to load or run the model, or the process dies'
    child = (
        'import sys; sys.path.insert(0, sys.argv[1])\n'
        'from mmdeploy_ext.graph import reduced_run\nfrom pathlib import Path\n'
        'print(reduced_run.run_outcome(sys.argv[2], reduced_run._arrays(Path(sys.argv[3]))))'
    )

    def __init__(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__()
        self.timeout_s = timeout_s

    def _outcome(self, candidate: Candidate) -> str:
        root = str(Path(__file__).resolve().parents[2])
        with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
            stored = _Files(Path(folder), candidate)
            command = [sys.executable, '-c', self.child, root, str(stored.model), str(stored.inputs)]
            status, output = run_limited(command, self.timeout_s)
        if status is None:
            return 'does not end'
        return (
            f'signal {-status}'
            if status < 0
            else output.strip().splitlines()[-1]
            if output.strip()
            else 'dies'
        )

    def settle(self, whole: Candidate) -> bool:
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

    def __init__(self, command: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__()
        self.command, self.timeout_s = command, timeout_s
        self.meaning = f'the command {command!r} exits with 0'
        self.timeouts, self.last = 0, ''

    def _status(self, candidate: Candidate) -> int | None:
        with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
            stored = _Files(Path(folder), candidate)
            words = shlex.quote(str(stored.model))
            text = self.command.replace('{}', words) if '{}' in self.command else f'{self.command} {words}'
            status, output = run_limited(text, self.timeout_s)
        lines = output.strip().splitlines()
        self.last = f'it exited with {status}' + (f' and said {lines[-1]!r}' if lines else '')
        return status

    def settle(self, whole: Candidate) -> bool:
        """Refuse a command that cannot be run or does not end."""
        status = self._status(whole)
        if status is None:
            raise UsageError(
                f'--check {self.command!r}: did not end within {self.timeout_s:g} s on the whole model and '
                f'was stopped; give it more time with --timeout'
            )
        if status in NOT_RUNNABLE:
            raise UsageError(f'--check {self.command!r}: the shell cannot run it: {self.last}')
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
    """Run a command with all that it starts, and end all of it after a time.

    Args:
        command: text for the shell, or words.
        seconds: time limit.

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


@dataclasses.dataclass(frozen=True)
class CheckText:
    """What stands behind --check: a built-in check with its file, or a command."""

    kind: str
    rest: str


BUILT_IN = {entry.kind: entry for entry in (NotFinite, Engines, Reference, Differs, Crash)}


def parse_check(text: str) -> CheckText:
    """Read the text of --check.

    Raises:
        UsageError: empty; a built-in check with a wrong number of files; one word that is no command.
    """
    import shutil

    words = text.split()
    if not words:
        raise UsageError(f'--check: is empty; expected a command or one of {", ".join(BUILT_IN)}')
    if words[0] in BUILT_IN:
        wanted = 2 if words[0] == Differs.kind else 1
        if len(words) != wanted:
            example = f'{words[0]} OTHER.onnx' if wanted == 2 else words[0]
            raise UsageError(f'--check {text!r}: expected {example!r}')
        return CheckText(words[0], ' '.join(words[1:]))
    if len(words) == 1 and not shutil.which(text):
        raise UsageError(
            f'--check {text!r}: is neither a command nor one of {", ".join(BUILT_IN)}{near(text, BUILT_IN)}'
        )
    return CheckText('command', text)
