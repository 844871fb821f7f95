"""Checks for `graph reduce`: built-in ones and the user's command."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnx import numpy_helper

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.io.files import save_npz
from mmdeploy_ext.graphs.io.index import did_you_mean
from mmdeploy_ext.graphs.reduce import run
from mmdeploy_ext.graphs.reduce.case import Candidate

DEFAULT_TOLERANCE = 1e-4
"""Largest difference that is no fault, relative to the largest expected value of the same output."""
DEFAULT_TIMEOUT_S = 60.0
"""Time limit of one run of a command."""
MAX_TIMEOUTS = 3
"""Number of timeouts at which the reduction stops."""
NOT_RUNNABLE = (126, 127)
"""Exit statuses of a shell that cannot run a command, or does not find it."""


class Stopped(Exception):
    """The reduction ends here; the message says why."""


class Check:
    """Base of all checks: decides whether a candidate shows the fault of the whole model.

    Attributes:
        kind: name of the built-in check, or 'command'.
        meaning: the fault, for messages.
        outcome: fault of the whole model ('nan', 'inf', 'Fail' ...), which candidates have to show.
        tolerance: allowed difference, relative to the output's largest expected value.
        rounding: whether to round float16 values, see `case.Case.rounding`.
    """

    kind = meaning = outcome = ''
    rounding = False

    def __init__(self, tolerance: float = DEFAULT_TOLERANCE) -> None:
        self.tolerance = tolerance

    def shows(self, candidate: Candidate) -> bool:
        raise NotImplementedError

    def check_whole(self, whole_model: Candidate) -> bool:
        return self.shows(whole_model)

    def expected(self, candidate: Candidate, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: values[name] for name in candidate.outputs if name in values}

    def narrow(self) -> bool:
        """Look for the likely cause of the fault instead, which may need fewer nodes; False without one."""
        return False

    def widen(self) -> None:
        """Undo `narrow`: the part does not show the cause."""

    def why_not(self) -> str:
        return f'the whole model does not have this fault: {self.meaning}'

    def facts(self) -> dict[str, Any]:
        return dict(check=self.kind, tolerance=self.tolerance, outcome=self.outcome)


def _compute(candidate: Candidate, optimized: bool) -> dict[str, np.ndarray] | None:
    with files.openable(candidate.model) as source:
        try:
            outputs = run.compute(source, candidate.feeds, optimized)
        except Exception:
            return None
    return {name: outputs[name] for name in candidate.outputs}


class NotFinite(Check):
    """Finite inputs give NaN, else infinity; a NaN mostly comes from an infinity before it."""

    kind = 'nan'
    meaning = 'an output is not finite, but all inputs are'
    rounding = True
    _narrowed = False

    def _outcome(self, candidate: Candidate) -> str:
        tensors = candidate.model.graph.initializer if self._narrowed else ()
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
        if run.not_finite({**candidate.feeds, **constants}):
            return ''
        return run.not_finite(_compute(candidate, optimized=False) or {})

    def check_whole(self, whole_model: Candidate) -> bool:
        if run.not_finite(whole_model.feeds):
            raise UsageError('--check nan: the inputs are not finite; pass finite ones')
        self.outcome = self._outcome(whole_model)
        return bool(self.outcome)

    def shows(self, candidate: Candidate) -> bool:
        outcome = self._outcome(candidate)
        if self._narrowed and outcome:
            self.outcome = outcome
        return outcome == self.outcome

    def narrow(self) -> bool:
        self._narrowed = self.outcome == 'nan'
        return self._narrowed

    def widen(self) -> None:
        self._narrowed = False


class Compared(Check):
    """Base of the checks that compare ONNX Runtime's outputs with `right` ones.

    Attributes:
        optimized: run candidates with all optimisations, else with none.
        refusal: a refused model has the fault, too.
    """

    optimized = True
    refusal = False

    def right(self, candidate: Candidate) -> dict[str, np.ndarray] | None:
        raise NotImplementedError

    def shows(self, candidate: Candidate) -> bool:
        outputs, right = _compute(candidate, self.optimized), self.right(candidate)
        if not right or outputs is None:
            return bool(right) and self.refusal
        return run.difference(outputs, right) > self.tolerance

    def expected(self, candidate: Candidate, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The right outputs, else the recorded values."""
        return self.right(candidate) or super().expected(candidate, values)


class Engines(Compared):
    """ONNX Runtime's optimisations change the result."""

    kind = 'engines'
    meaning = 'ONNX Runtime with all optimisations differs from ONNX Runtime without any'
    refusal = True

    def right(self, candidate: Candidate) -> dict[str, np.ndarray] | None:
        return _compute(candidate, optimized=False)


class Reference(Compared):
    """ONNX Runtime and the reference implementation of ONNX differ."""

    kind = 'reference'
    meaning = 'ONNX Runtime differs from the reference implementation of ONNX'

    def right(self, candidate: Candidate) -> dict[str, np.ndarray] | None:
        from onnx.reference import ReferenceEvaluator

        try:
            with np.errstate(all='ignore'):
                outputs = ReferenceEvaluator(candidate.model).run(None, candidate.feeds)
        except Exception:
            return None
        return dict(zip(candidate.outputs, outputs, strict=True))


class Differs(Compared):
    """A part on another model's values gives other values than that model has there."""

    kind = 'differs'
    meaning = 'on the same values, the graph and the other model return different results'
    rounding = True
    optimized = False

    def __init__(self, tolerance: float, other_values: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Keep the other model's recorded values (tensor -> array) in the dtypes of `values`."""
        super().__init__(tolerance)
        with np.errstate(over='ignore'):
            self.values = {
                name: array.astype(values[name].dtype)
                for name, array in other_values.items()
                if isinstance(values.get(name), np.ndarray) and isinstance(array, np.ndarray)
            }

    def right(self, candidate: Candidate) -> dict[str, np.ndarray]:
        return {name: self.values[name] for name in candidate.outputs if name in self.values}


class Crash(Check):
    """ONNX Runtime refuses to load or run the model; its exception is the outcome."""

    kind = 'crash'
    meaning = 'ONNX Runtime refuses to load or run the model'

    def _outcome(self, candidate: Candidate) -> str:
        with files.openable(candidate.model) as source:
            return run.outcome(source, candidate.feeds)

    def check_whole(self, whole_model: Candidate) -> bool:
        self.outcome = self._outcome(whole_model)
        return self.outcome != 'runs'

    def shows(self, candidate: Candidate) -> bool:
        return self._outcome(candidate) == self.outcome


class Command(Check):
    """A shell command, called with the file of the candidate; exit status 0: it has the fault."""

    kind = 'command'

    def __init__(self, command: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__()
        self.command, self.timeout_s = command, timeout_s
        self.timeouts, self.last_result = 0, ''
        self.meaning = f'the command {command!r} exits with 0'

    def _status(self, candidate: Candidate) -> int | None:
        with _stored(candidate) as model:
            file = shlex.quote(str(model))
            text = self.command.replace('{}', file) if '{}' in self.command else f'{self.command} {file}'
            status, output = run_limited(text, self.timeout_s)
        lines = output.strip().splitlines()
        self.last_result = f'it exited with {status}' + (f' and said {lines[-1]!r}' if lines else '')
        return status

    def check_whole(self, whole_model: Candidate) -> bool:
        status = self._status(whole_model)
        if status is None:
            raise UsageError(
                f'--check {self.command!r}: did not end within {self.timeout_s:g} s on the whole model '
                'and was stopped; raise --timeout'
            )
        if status in NOT_RUNNABLE:
            raise UsageError(f'--check {self.command!r}: the shell cannot run it: {self.last_result}')
        return status == 0

    def shows(self, candidate: Candidate) -> bool:
        status = self._status(candidate)
        if status is None:
            self.timeouts += 1
            if self.timeouts >= MAX_TIMEOUTS:
                raise Stopped(f'the check exceeded {self.timeout_s:g} s {self.timeouts} times')
        return status == 0

    def why_not(self) -> str:
        return f'the check does not find the fault in the whole model: {self.last_result}'

    def facts(self) -> dict[str, Any]:
        return dict(super().facts(), command=self.command)


class CheckText(NamedTuple):
    """Parsed --check: a built-in check or 'command', and the command or the other file of 'differs'."""

    kind: str
    rest: str


BUILT_IN = ('nan', 'engines', 'reference', 'differs', 'crash')
"""Names of the built-in checks."""
NUMERIC = {check.kind: check for check in (NotFinite, Engines, Reference)}
"""Name -> class of the built-in checks that need nothing but a tolerance."""


def parse_check(text: str) -> CheckText:
    """Read the text of --check: a built-in check, 'differs OTHER.onnx', or a command of the shell."""
    words = text.split()
    if not words:
        raise UsageError(f'--check: is empty; expected a command or one of {", ".join(BUILT_IN)}')
    if words[0] in BUILT_IN:
        example = f'{words[0]} OTHER.onnx' if words[0] == Differs.kind else words[0]
        if len(words) != len(example.split()):
            raise UsageError(f'--check {text!r}: expected {example!r}')
        return CheckText(words[0], ' '.join(words[1:]))
    if len(words) == 1 and not shutil.which(text):
        raise UsageError(
            f'--check {text!r}: is neither a command nor one of {", ".join(BUILT_IN)}'
            f'{did_you_mean(text, BUILT_IN)}'
        )
    return CheckText('command', text)


@contextlib.contextmanager
def _stored(candidate: Candidate) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
        model = Path(folder, 'model.onnx')
        files.write(candidate.model, model)
        save_npz(model.with_name('inputs.npz'), candidate.feeds)
        yield model


def run_limited(command: str, seconds: float) -> tuple[int | None, str]:
    """Run a shell command; after `seconds` it is killed with its children.

    Returns the exit status (negative for a signal, None if stopped) and its output with errors.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            shell=True,
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
