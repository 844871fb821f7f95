"""Rows of comparisons as findings: the one place that turns what was compared into a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.proving.verdict import Finding

if TYPE_CHECKING:
    from mmdeploy_ext.proving.results import (
        Case,
        Check,
        GraphResult,
        MetricRow,
        PreprocessingResult,
        SequenceRow,
    )
    from mmdeploy_ext.proving.verdict import Verdict

UNSEEN = 'no input that the exporter did not see was compared'
"""The failure of a proof that ran on traced inputs only."""


@dataclasses.dataclass
class Results:
    """What a proof has compared so far.

    Attributes:
        graphs: the comparison of every file's graph with a fresh export.
        checks: the other checks of the files.
        preprocessing: samples prepared by the rule in the file and by the config's test pipeline, or voxels
            by the rule and by the layer of the model; None if nothing was compared.
        cases: the inputs, with tensors and results.
        sequence: a drive, once in each mode.
        reasons: why the proof as a whole fails beyond single rows, e.g. that nothing at all was matched.
    """

    graphs: list[GraphResult] = dataclasses.field(default_factory=list)
    checks: list[Check] = dataclasses.field(default_factory=list)
    preprocessing: PreprocessingResult | None = None
    cases: list[Case] = dataclasses.field(default_factory=list)
    sequence: list[SequenceRow] = dataclasses.field(default_factory=list)
    reasons: list[str] = dataclasses.field(default_factory=list)

    def add_to(self, verdict: Verdict) -> None:
        """Add a finding for every row to a verdict, those that say most about a failure first."""
        findings = verdict.findings
        findings += map(graph_finding, self.graphs)
        findings += (Finding('outputs', '', False, reason) for reason in self.reasons)
        findings += map(check_finding, self.checks)
        findings.append(preprocessing_finding(self.preprocessing))
        for row in self.sequence:
            findings += sequence_findings(row)
            verdict.series[row.title] = row.series
        findings += case_findings(self.cases)
        if all(case.traced for case in self.cases):
            findings.append(Finding('outputs', '', False, UNSEEN))


def graph_finding(graph: GraphResult) -> Finding:
    """Return what the comparison with a fresh export gave; all differences are in the figures."""
    texts = [difference.text for difference in graph.differences]
    figures = dict(name=graph.name, nodes=graph.nodes, equal=graph.equal, left_out=graph.left_out)
    figures['differences'] = texts
    return Finding('file', 'graph', graph.passed, graph.text, figures)


def check_finding(check: Check) -> Finding:
    """Return a check of the file, of its metadata or of the weights."""
    return Finding('surroundings', check.name, check.passed, check.detail)


def preprocessing_finding(result: PreprocessingResult | None) -> Finding:
    """Return what samples showed of the preprocessing."""
    if result is None:
        return Finding('surroundings', 'preprocessing', False, "not compared with the config's test pipeline")
    texts = [difference.text for difference in result.differences]
    figures = dict(samples=len(result.samples), unit=result.unit, differences=texts)
    return Finding('surroundings', 'preprocessing', result.passed, result.text, figures)


def library_findings(not_run: Mapping[str, str], is_against_installed: bool) -> list[Finding]:
    """Return a finding for each of the repository's own libraries that did not run."""
    return [
        Finding(
            'surroundings',
            f"the repository's own {own}",
            is_against_installed,
            f'did not run: the installed {installed} ran in its place',
            dict(installed=installed),
        )
        for own, installed in not_run.items()
    ]


def sequence_findings(row: SequenceRow) -> Iterator[Finding]:
    """Yield a drive in one mode, and a finding for each further reason why it fails."""
    figures = _fields(row, 'mode', 'tensors', 'reasons', 'series')
    first, *more = row.reasons or ('',)
    yield Finding('outputs', row.title, row.passed, first, figures)
    for reason in more:
        yield Finding('outputs', row.title, False, reason)


def case_findings(cases: Iterable[Case]) -> Iterator[Finding]:
    """Yield the tensors and results of inputs; an input without either has one that says so."""
    for index, case in enumerate(cases):
        title = f'{case.name} {case.input_shape}'.strip()
        shape = case.input_shape
        common = dict(case=index, input=case.name, input_shape=shape, traced=case.traced)
        for row in case.tensors:
            figures = common | _fields(row, 'passed', 'reason')
            yield Finding('outputs', f'{title}: {row.tensor}', row.passed, row.reason, figures)
        kinds = dict(image=case.detections, inner=case.inner, substituted=case.substituted)
        for kind, row in ((kind, row) for kind, rows in kinds.items() for row in rows):
            figures = common | {kind: row.image} | _fields(row, 'image', 'passed', 'reason')
            if row.worst_distance is not None:
                del figures['worst_iou']
            suffix = ", by the file's own tensors" if kind == 'substituted' else ''
            yield Finding('outputs', f'{title}: {row.image}{suffix}', row.passed, row.reason, figures)
        if not case.tensors and not case.detections:
            yield Finding('outputs', title, True, 'all outputs are empty', common)


def metric_finding(row: MetricRow) -> Finding:
    """Return a metric of a data set by both sides."""
    figures = dict(reference=row.reference, candidate=row.candidate, bar=row.bar)
    return Finding('metrics', row.name, row.passed, row.difference_text, figures)


def _fields(row: Any, *left_out: str) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name not in left_out}
