"""Proofs that end at the first thing that fails: what is wrong cannot become PROVEN by more inputs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.proving import ladder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.proving.verdict import Results


class Refused(Exception):
    """A proof has failed; the message is the first reason."""


def first_reason(results: Results) -> str:
    """Return what fails first of what was compared so far; '' where everything passed."""
    for graph in results.graphs:
        if not graph.passed:
            return f'graph: {graph.text}'
    for check in results.checks:
        if not check.passed:
            return f'{check.name}: {check.detail}'
    if results.preprocessing is not None and not results.preprocessing.passed:
        return f'preprocessing: {results.preprocessing.text}'
    for case in results.cases:
        if not case.passed:
            return f'input: {case.name}'
    for row in results.sequence:
        if not row.passed:
            return f'sequence: {row.title}'
    return '; '.join(results.reasons)


def stop_at_reason(proof: Any, method: str) -> None:
    """Let a method of a proof raise `Refused` where something has failed after it."""
    run = getattr(proof, method)

    def stopping(*args: Any) -> Any:
        result, reason = run(*args), first_reason(proof.results)
        if reason:
            raise Refused(reason)
        return result

    setattr(proof, method, stopping)


def stop_at_graph(proof: Any) -> None:
    """Let a proof raise `Refused` at the first graph that differs, before its other checks of level 1."""
    compare = proof.graph

    def stopping(file: Any) -> Any:
        graph = compare(file)
        if not graph.passed:
            raise Refused(f'graph: {graph.text}')
        return graph

    proof.graph = stopping


@contextlib.contextmanager
def stopped_at_refusal() -> Iterator[None]:
    """Inside the block every proof raises `Refused` as soon as one of its parts fails."""
    open_proof = ladder.open_proof

    def opened(*args: Any, **settings: Any) -> Any:
        proof = open_proof(*args, **settings)
        for method in ('check', 'run'):
            stop_at_reason(proof, method)
        stop_at_graph(proof)
        return proof

    ladder.open_proof = opened
    try:
        yield
    finally:
        ladder.open_proof = open_proof
