"""Proofs of pictures that end at the first thing that fails: more inputs cannot make it PROVEN."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from unittest import mock

from mmdeploy_ext.proving import pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mmdeploy_ext.proving.proof import Proof


class Refused(Exception):
    """A proof has failed; the message is the first reason."""


def reason_of_checks(proof: Proof) -> str:
    """Return what fails first of level 1; '' where everything passed."""
    results = proof.results
    reasons = [f'graph: {graph.text}' for graph in results.graphs if not graph.passed]
    reasons += [f'{check.name}: {check.detail}' for check in results.checks if not check.passed]
    if results.preprocessing is not None and not results.preprocessing.passed:
        reasons.append(f'preprocessing: {results.preprocessing.text}')
    return reasons[0] if reasons else ''


def reason_of_input(result: tuple[Any, Any]) -> str:
    """Return the name of an input whose case failed; '' if it passed."""
    case, _ = result
    return '' if case.passed else f'input: {case.name}'


def stopping(name: str, reason_of: Callable[[Any], str]) -> Any:
    """Return a patch by which a function raises `Refused` where something has failed after it."""
    run = getattr(pictures, name)

    def run_or_stop(*args: Any) -> Any:
        result = run(*args)
        if reason := reason_of(result):
            raise Refused(reason)
        return result

    return mock.patch.object(pictures, name, run_or_stop)


@contextlib.contextmanager
def stopped_at_refusal() -> Iterator[None]:
    """Inside the block every proof of pictures raises `Refused` as soon as one of its parts fails."""
    with stopping('check_pictures', reason_of_checks), stopping('run_case', reason_of_input):
        yield
