"""Checks for `graph.py reduce`: whether the fault is in a graph, built-in ones and the user's own command."""

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

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.graph.io.index import did_you_mean
from mmdeploy_ext.graph.io.tensors import save_npz
from mmdeploy_ext.graph.reduce import run
from mmdeploy_ext.graph.reduce.case import Candidate

DEFAULT_TOLERANCE = 1e-4
"""Largest difference that is no fault, relative to the largest expected value of the same output."""
DEFAULT_TIMEOUT_S = 60.0
"""Time that one run of a check in a process of its own may take."""
MAX_TIMEOUTS = 3
"""The reduction is stopped at this number of candidates on which a command ran into its time limit."""
NOT_RUNNABLE = (126, 127)
"""Exit statuses of a shell that cannot run a command, or does not find it."""


class Stopped(Exception):
    """The reduction has to end here; the message says why."""


class Check:
    """Base of all checks: decides whether a candidate shows the fault that the whole model shows.

    Attributes:
        kind: name of the built-in check, or 'command'.
        meaning: the fault, for messages.
        outcome: which fault the whole model showed ('nan', 'inf', 'Fail' ...); the candidates have to show
            the same. `NotFinite` changes it after `narrow`.
        tolerance: largest difference that is no fault, as a part of the largest expected value of its output.
        rounding: whether float16 values are to be rounded, see `case.Case.rounding`.
    """

    kind = meaning = outcome = ''
    rounding = False

    def __init__(self, tolerance: float = DEFAULT_TOLERANCE) -> None:
        self.tolerance = tolerance

    def shows(self, candidate: Candidate) -> bool:
        """Return whether a candidate shows the fault, the same one as the whole model; see `check_whole`."""
        raise NotImplementedError

    def check_whole(self, whole_model: Candidate) -> bool:
        """Return whether the whole model shows the fault, and remember its `outcome`; called first."""
        return self.shows(whole_model)

    def expected(self, candidate: Candidate, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return output -> expected array of a candidate, if it is known."""
        return {name: values[name] for name in candidate.outputs if name in values}

    def narrow(self) -> bool:
        """Change what counts as the fault to its likely cause, which may need fewer nodes."""
        return False

    def widen(self) -> None:
        """Undo `narrow`, since the part does not show the cause."""

    def why_not(self) -> str:
        """Return the words of a message that the whole model does not show the fault."""
        return f'the whole model does not show it: {self.meaning}'

    def facts(self) -> dict[str, Any]:
        """Return the check's entries of case.json: `check` (its kind), `tolerance`, `outcome`."""
        return dict(check=self.kind, tolerance=self.tolerance, outcome=self.outcome)


def _compute(candidate: Candidate, optimized: bool) -> dict[str, np.ndarray] | None:
    with files.openable(candidate.model) as source:
        try:
            outputs = run.compute(source, candidate.feeds, optimized)
        except Exception:
            return None
    return {name: outputs[name] for name in candidate.outputs}


class NotFinite(Check):
    """Finite inputs give NaN, or where the whole model gives no NaN, infinity.

    A NaN mostly comes from an infinity before it.
    """

    kind = 'nan'
    meaning = 'an output is not finite although all inputs are'
    rounding = True
    _narrowed = False

    def _outcome(self, candidate: Candidate) -> str:
        tensors = candidate.model.graph.initializer if self._narrowed else ()
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
        if run.not_finite({**candidate.feeds, **constants}):
            return ''
        return run.not_finite(_compute(candidate, optimized=False) or {})

    def check_whole(self, whole_model: Candidate) -> bool:
        """Return whether an output of the whole model has NaN or infinity, and remember which of the two."""
        if run.not_finite(whole_model.feeds):
            raise UsageError('--check nan: the inputs themselves are not finite; give finite ones')
        self.outcome = self._outcome(whole_model)
        return bool(self.outcome)

    def shows(self, candidate: Candidate) -> bool:
        """Return whether the outputs have NaN, or infinity, as the whole model's have."""
        outcome = self._outcome(candidate)
        if self._narrowed and outcome:
            self.outcome = outcome
        return outcome == self.outcome

    def narrow(self) -> bool:
        """Take infinity for the fault, too, if the fault is NaN; returns whether it is."""
        self._narrowed = self.outcome == 'nan'
        return self._narrowed

    def widen(self) -> None:
        """Take NaN alone for the fault again."""
        self._narrowed = False


class Compared(Check):
    """Base of the checks that compare ONNX Runtime's outputs with the expected ones.

    Attributes:
        optimized: whether ONNX Runtime runs the candidates with all optimisations, or with none.
        refusal: whether a model that ONNX Runtime refuses has the fault, too.
    """

    optimized = True
    refusal = False

    def right(self, candidate: Candidate) -> dict[str, np.ndarray] | None:
        """Return output -> array that is right for a candidate, None or {} if that cannot be told."""
        raise NotImplementedError

    def shows(self, candidate: Candidate) -> bool:
        """Return whether an output is off by more than the tolerance."""
        outputs, right = _compute(candidate, self.optimized), self.right(candidate)
        if not right or outputs is None:
            return bool(right) and self.refusal
        return run.difference(outputs, right) > self.tolerance

    def expected(self, candidate: Candidate, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return output -> array that is right; if that can be told of none, the recorded values."""
        return self.right(candidate) or super().expected(candidate, values)


class Engines(Compared):
    """ONNX Runtime's optimisations change the result."""

    kind = 'engines'
    meaning = 'ONNX Runtime with all optimisations differs from ONNX Runtime without any'
    refusal = True

    def right(self, candidate: Candidate) -> dict[str, np.ndarray] | None:
        """Return output -> array of ONNX Runtime without optimisations; None if it fails."""
        return _compute(candidate, optimized=False)


class Reference(Compared):
    """ONNX Runtime and the reference implementation of ONNX differ."""

    kind = 'reference'
    meaning = 'ONNX Runtime differs from the reference implementation of ONNX'

    def right(self, candidate: Candidate) -> dict[str, np.ndarray] | None:
        """Return output -> array of ONNX's reference implementation; None if it fails."""
        from onnx.reference import ReferenceEvaluator

        try:
            with np.errstate(all='ignore'):
                outputs = ReferenceEvaluator(candidate.model).run(None, candidate.feeds)
        except Exception:
            return None
        return dict(zip(candidate.outputs, outputs, strict=True))


class Differs(Compared):
    """A part that is fed with another model's values gives other values than that model has there."""

    kind = 'differs'
    meaning = 'fed with the values of the other model, the graph gives other ones than it'
    rounding = True
    optimized = False

    def __init__(self, tolerance: float, other_values: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Keep the values of the other model, in the dtypes of this one.

        Args:
            tolerance: see `Check`.
            other_values: tensor name -> recorded value of the other model.
            values: tensor -> array of the model on trial; equal names are the same tensor.
        """
        super().__init__(tolerance)
        with np.errstate(over='ignore'):
            self.values = {
                name: array.astype(values[name].dtype)
                for name, array in other_values.items()
                if isinstance(values.get(name), np.ndarray) and isinstance(array, np.ndarray)
            }

    def right(self, candidate: Candidate) -> dict[str, np.ndarray]:
        """Return output -> array of the other model, without outputs that it does not have."""
        return {name: self.values[name] for name in candidate.outputs if name in self.values}


class Crash(Check):
    """ONNX Runtime refuses to load or run the model: its exception is the outcome."""

    kind = 'crash'
    meaning = 'ONNX Runtime refuses to load or run the model'

    def _outcome(self, candidate: Candidate) -> str:
        with files.openable(candidate.model) as source:
            return run.outcome(source, candidate.feeds)

    def check_whole(self, whole_model: Candidate) -> bool:
        """Return whether ONNX Runtime refuses the whole model, and remember its exception."""
        self.outcome = self._outcome(whole_model)
        return self.outcome != 'runs'

    def shows(self, candidate: Candidate) -> bool:
        """Return whether a candidate is refused as the whole model is."""
        return self._outcome(candidate) == self.outcome


class Command(Check):
    """A shell command, called with the file of the candidate: exit status 0 means that it has the fault.

    Attributes:
        meaning: the fault, for messages.
        timeouts: number of candidates on which the command ran into its time limit.
        last_result: how the last call ended, for messages.
    """

    kind = 'command'

    def __init__(self, command: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Keep the command, and the seconds after which a call of it is stopped."""
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
        """Return whether the command exits with 0 on the whole model."""
        status = self._status(whole_model)
        if status is None:
            raise UsageError(
                f'--check {self.command!r}: did not end within {self.timeout_s:g} s on the whole model and '
                f'was stopped; give it more time with --timeout'
            )
        if status in NOT_RUNNABLE:
            raise UsageError(f'--check {self.command!r}: the shell cannot run it: {self.last_result}')
        return status == 0

    def shows(self, candidate: Candidate) -> bool:
        """Return whether the command exits with 0; False if it runs into its time limit."""
        status = self._status(candidate)
        if status is None:
            self.timeouts += 1
            if self.timeouts >= MAX_TIMEOUTS:
                raise Stopped(f'the check did not end within {self.timeout_s:g} s {self.timeouts} times')
        return status == 0

    def why_not(self) -> str:
        """Return how the command ended."""
        return f'the check says no to the whole model: {self.last_result}'

    def facts(self) -> dict[str, Any]:
        """Return the facts of `Check.facts`, and the command as `command`."""
        return dict(super().facts(), command=self.command)


class CheckText(NamedTuple):
    """The parts of --check.

    Attributes:
        kind: name of a built-in check, or 'command'.
        rest: the command; of 'differs' the file of the other model, of other built-in checks ''.
    """

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
    """Run a command of the shell; after `seconds` it is killed with its children.

    Returns:
        Exit status, negative for a signal, None when it was stopped; and its output, errors included.
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
