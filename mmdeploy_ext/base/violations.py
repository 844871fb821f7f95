"""Violations of contracts of engines that read ONNX their own way: libspconv, CUDA-BEVFusion, Autoware."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

ERROR, WARNING, NOTE = 'error', 'warning', 'note'


@dataclasses.dataclass(frozen=True)
class Violation:
    """A part of a file that the engine rejects or misreads.

    Attributes:
        node: node, or file of a checked folder; '' for the whole.
        attribute: attribute, initializer, tensor, key or node; '' for the whole.
        rule: short name, e.g. 'missing-bias'.
        message: value in the file, expected value, and the engine's behaviour.
        severity: 'error': wrong or no results; 'warning': probably unintended; 'note': a fact, no violation.
    """

    node: str
    attribute: str
    rule: str
    message: str
    severity: str = ERROR


def errors(violations: Iterable[Violation]) -> list[Violation]:
    return [violation for violation in violations if violation.severity == ERROR]
