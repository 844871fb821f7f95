"""The results of the proof of a module as plain data: the table and the JSON file are views of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.printable import on_inputs
from mmdeploy_ext.proving.verdict import plain_json

if TYPE_CHECKING:
    from mmdeploy_ext.proving.results import Case, Check
    from mmdeploy_ext.proving.untraced import Untraced


@dataclasses.dataclass
class ModuleVerdict:
    """The verdict about one module and one file.

    Attributes:
        subject: file, module, its source, hashes, versions, tolerance: printed as they are.
        structure: checks of the file without running it.
        graph: sentence about the comparison of the file's graph with a fresh export of the module; ''
            if it was not compared.
        graph_equal: whether the graph is that of a fresh export, which computes the same for every input.
        untraced: what a graph cannot show of the user's code; no failure.
        cases: one per input; of a sequence three per frame: with the module's state, with the file's own, and
            with its own once more from the start. Each has a row per output, two if a second run of the file
            gave other bits, but none for outputs that are empty on both sides, and a single one if the file
            could not run.
        reasons: why the proof as a whole fails beyond single rows.
        location: where the first difference arises, the dict that `location.locate` returns; {} if nothing
            differs, or nothing could be located.
        not_compared: inputs that the module itself refuses, and other parts that were not compared, and why.
        notes: remarks for the reader.
    """

    subject: dict[str, Any]
    structure: list[Check] = dataclasses.field(default_factory=list)
    graph: str = ''
    graph_equal: bool = False
    untraced: list[Untraced] = dataclasses.field(default_factory=list)
    cases: list[Case] = dataclasses.field(default_factory=list)
    reasons: list[str] = dataclasses.field(default_factory=list)
    location: dict[str, Any] = dataclasses.field(default_factory=dict)
    not_compared: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def proven(self) -> bool:
        """Whether something was compared, and everything was equal."""
        return bool(self.cases) and not self.failures

    @property
    def failures(self) -> list[str]:
        """All failures: reasons, failed checks, and rows of outputs that differ."""
        failures = list(self.reasons)
        failures += [f'{check.name}: {check.detail}' for check in self.structure if not check.passed]
        for case in self.cases:
            failures += case.failures
        return failures

    @property
    def title(self) -> str:
        """The claim: 'NOT PROVEN', 'PROVEN', or 'PROVEN ON n INPUTS' with the number of cases.

        The last one is that of a graph that is not that of a fresh export.
        """
        if not self.proven:
            return 'NOT PROVEN'
        return 'PROVEN' if self.graph_equal else f'PROVEN {on_inputs(len(self.cases))}'

    @property
    def worst_relative_error(self) -> float | None:
        """The largest difference of any tensor, relative to the largest absolute value of its reference.

        That is its largest value on the same input, or on another sample if the tensor passes only because
        its values are larger there. Tensors that could not be compared, or whose reference is zero where they
        are not, are left out; None: no tensor is left.
        """
        rows = (row for case in self.cases for row in case.tensors)
        return max((row.max_rel for row in rows if row.max_rel is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as plain JSON types, behind `verdict`, `failures` and `worst_rel`.

        These are the title in small letters, all failures, and the worst relative error.
        """
        first = dict(verdict=self.title.lower(), failures=self.failures, worst_rel=self.worst_relative_error)
        cases = [case.to_json() for case in self.cases]
        return plain_json(first | dataclasses.asdict(self) | dict(cases=cases))
