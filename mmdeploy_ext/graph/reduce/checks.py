"""Is the fault in this graph? Checks for `graph.py reduce`: built-in ones, and the user's own command."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from onnx import numpy_helper

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.graph.io.index import near
from mmdeploy_ext.graph.reduce import run
from mmdeploy_ext.graph.reduce.case import Candidate

DEFAULT_TOLERANCE = 1e-4


class Stopped(Exception):
    """The reduction has to end here; the message says why."""


class Check:
    """Base of all checks.

    Attributes:
        kind: name of the built-in check, or 'command'.
        meaning: what the fault is, for messages.
        outcome: what the whole model showed; the candidates have to show the same.
        tolerance: largest difference that is no fault, as a part of the largest expected value.
        rounding: see `case.Case`.
    """

    kind = meaning = outcome = ''
    rounding = False

    def __init__(self, tolerance: float = DEFAULT_TOLERANCE) -> None:
        self.tolerance = tolerance

    def shows(self, candidate: Candidate) -> bool:
        """Return whether a candidate shows the fault."""
        raise NotImplementedError

    def check_whole(self, whole: Candidate) -> bool:
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


def _compute(candidate: Candidate, optimized: bool) -> dict[str, np.ndarray] | None:
    """Return the outputs, None where ONNX Runtime refuses the model."""
    with files.openable(candidate.model) as source:
        try:
            found = run.compute(source, candidate.feeds, optimized)
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
    _narrowed = False

    def _outcome(self, candidate: Candidate) -> str:
        tensors = candidate.model.graph.initializer if self._narrowed else ()
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
        if run.not_finite({**candidate.feeds, **constants}):
            return ''
        return run.not_finite(_compute(candidate, optimized=False) or {})

    def check_whole(self, whole: Candidate) -> bool:
        """Remember whether NaN or infinity is looked for."""
        if run.not_finite(whole.feeds):
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


class Compared(Check):
    """Base of the checks that compare what ONNX Runtime, `optimized` or not, gives with what is right.

    `refusal` says whether it is the fault, too, that it then refuses the model.
    """

    optimized = True
    refusal = False

    def right(self, candidate: Candidate) -> dict[str, np.ndarray] | None:
        """Return the outputs that are right, None or {} where there are none."""
        raise NotImplementedError

    def shows(self, candidate: Candidate) -> bool:
        """See `meaning`."""
        got, right = _compute(candidate, self.optimized), self.right(candidate)
        if not right or got is None:
            return bool(right) and self.refusal
        return run.difference(got, right) > self.tolerance

    def expected(self, candidate: Candidate, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return what is right."""
        return self.right(candidate) or super().expected(candidate, values)


class Engines(Compared):
    """ONNX Runtime's optimisations change the result."""

    kind = 'engines'
    meaning = 'ONNX Runtime with all optimisations differs from ONNX Runtime without any'
    refusal = True

    def right(self, candidate: Candidate) -> dict[str, np.ndarray] | None:
        """Return what ONNX Runtime gives without optimisations."""
        return _compute(candidate, optimized=False)


class Reference(Compared):
    """ONNX Runtime and the reference implementation of ONNX differ."""

    kind = 'reference'
    meaning = 'ONNX Runtime differs from the reference implementation of ONNX'

    def right(self, candidate: Candidate) -> dict[str, np.ndarray] | None:
        """Return what the reference implementation gives."""
        from onnx.reference import ReferenceEvaluator

        try:
            with np.errstate(all='ignore'):
                found = ReferenceEvaluator(candidate.model).run(None, candidate.feeds)
        except Exception:
            return None
        return dict(zip(candidate.outputs, found, strict=True))


class Differs(Compared):
    """A part that is fed with another model's values gives other values than that model has there."""

    kind = 'differs'
    meaning = 'fed with the values of the other model, the graph gives other ones than it'
    rounding = True
    optimized = False

    def __init__(self, tolerance: float, other: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Take the recorded values of both models; tensors are the same that have the same name."""
        super().__init__(tolerance)
        with np.errstate(over='ignore'):
            self.values = {
                name: value.astype(own[name].dtype)
                for name, value in other.items()
                if isinstance(own.get(name), np.ndarray) and isinstance(value, np.ndarray)
            }

    def right(self, candidate: Candidate) -> dict[str, np.ndarray]:
        """Return the other model's values."""
        return {name: self.values[name] for name in candidate.outputs if name in self.values}


class CheckText(NamedTuple):
    """What stands behind --check: a built-in check with its file, or a command."""

    kind: str
    rest: str


BUILT_IN = ('nan', 'engines', 'reference', 'differs', 'crash')
NUMERIC = {entry.kind: entry for entry in (NotFinite, Engines, Reference)}
"""Checks that need nothing but a tolerance."""


def parse_check(text: str) -> CheckText:
    """Read the text of --check; UsageError for no text, too few or many files, a word that is no command."""
    import shutil

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
            f'--check {text!r}: is neither a command nor one of {", ".join(BUILT_IN)}{near(text, BUILT_IN)}'
        )
    return CheckText('command', text)
