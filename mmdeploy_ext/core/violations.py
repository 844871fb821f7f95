"""Violations of a contract: what the program that loads a file would reject or read wrongly.

Contracts are those of engines that read ONNX files in their own way: libspconv, CUDA-BEVFusion, Autoware.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ERROR, WARNING = 'error', 'warning'


@dataclasses.dataclass(frozen=True)
class Violation:
    """A part of a file with which the engine would not do what the author meant.

    Attributes:
        node: name of the node; if a folder is checked that of the file, with a node of a sparse one behind
            it; '' for the file or the folder as a whole.
        attribute: attribute, initializer, tensor or key that it is about, or node if a folder is checked; ''
            for the node as a whole.
        rule: short name of the rule, e.g. 'missing-bias'.
        message: value in the file, expected value, and what the engine does with it.
        severity: 'error': wrong or no results; 'warning': probably not what was meant.
    """

    node: str
    attribute: str
    rule: str
    message: str
    severity: str = ERROR


def errors(violations: Iterable[Violation]) -> list[Violation]:
    """Return the violations of severity 'error'."""
    return [violation for violation in violations if violation.severity == ERROR]
