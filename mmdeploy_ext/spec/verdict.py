"""A proof's verdict as plain data; console, JSON and report show it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.spec.results import bars_of

if TYPE_CHECKING:
    from mmdeploy_ext.spec.results import (
        Bars,
        Case,
        Check,
        GraphResult,
        MetricRow,
        Pair,
        PreprocessingResult,
        SequenceRow,
    )


LEVELS = 'file', 'surroundings', 'outputs', 'metrics'
"""Level of a finding: graphs; metadata, preprocessing and weights; tensors and results; a data set."""
AS_IN_CONFIG = 'as in the config'
"""Suffix of the subject of findings about settings."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a verdict claims.

    Attributes:
        word: the claim in float32.
        needs: level -> failure of a verdict without such a finding.
    """

    word: str
    needs: Mapping[str, str]


NOTHING_COMPARED = 'nothing was compared'
PROVEN = Claim(
    'PROVEN',
    dict(
        file='the graph was not compared with a fresh export',
        surroundings='the file was not checked',
        outputs=NOTHING_COMPARED,
    ),
)
"""Of a file and its model."""
EQUAL = Claim('EQUAL', dict(outputs=NOTHING_COMPARED))
"""Of an engine's outputs and PyTorch's results in a kit."""
AGREES = Claim('AGREES', {})
"""Of an engine and the dump of a test loop, which may be missing."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        level: one of `LEVELS`.
        subject: such as 'other size, batch 2 1x3x320x448: cls_score_0'; or ''.
        passed: None: not compared, not a failure.
        text: why it failed, or the finding.
        figures: of a tensor `tensor` and the figures of `TensorRow`; of results `image` (or `substituted`,
            `inner`, `engine`) and the figures of `DetectionRow`; with `case`, `input`, `input_shape`
            and `traced`, and `sample` if several cases share an input.
    """

    level: str
    subject: str
    passed: bool | None
    text: str = ''
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def line(self) -> str:
        return ': '.join(filter(None, (self.subject, self.text)))


@dataclasses.dataclass
class Verdict:
    """The result of a proof, a judge of outputs, or a comparison with a dump.

    Attributes:
        subject: file, family, task, precision, config, checkpoint, hashes, versions, engine.
        findings: every comparison.
        untraced: gaps between graph and the user's code; no failure.
        unreached: limits that no input reached; no failure.
        notes: remarks; no failure.
        timing_ms: title of each side -> median milliseconds.
        model_classes: classes of the model outside of installed libraries.
        series: 'teacher-forced' or 'free-running' -> `SequenceRow.series`.
        pairs: a few samples with both sides' results, to draw; not in JSON.
        claim: its claim; not in JSON.
    """

    subject: dict[str, Any]
    findings: list[Finding] = dataclasses.field(default_factory=list)
    untraced: list[str] = dataclasses.field(default_factory=list)
    unreached: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    timing_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    model_classes: list[str] = dataclasses.field(default_factory=list)
    series: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    pairs: list[Pair] = dataclasses.field(default_factory=list, repr=False)
    claim: Claim = PROVEN

    @property
    def precision(self) -> str:
        return str(self.subject.get('precision') or 'fp32')

    @property
    def bars(self) -> Bars:
        return bars_of(self.precision)

    @property
    def failures(self) -> list[str]:
        """Reasons, different settings first: they explain all other differences."""
        failed = [finding for finding in self.findings if finding.passed is False]
        failed.sort(key=lambda finding: not finding.subject.endswith(AS_IN_CONFIG))
        absent = [text for level, text in self.claim.needs.items() if not self.of(level)]
        return [finding.line for finding in failed] + absent

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def proven(self) -> bool:
        """Whether the proof passed with float32's bars; other precisions are never proven."""
        return self.passed and self.bars.is_float32

    @property
    def title(self) -> str:
        claim = self.claim.word if self.bars.is_float32 else f'WITHIN {self.precision.upper()} BARS'
        if not self.passed:
            return f'NOT {claim}'
        if not_run := self.subject.get('libraries_not_run'):
            claim = f'{claim} against the installed {" and ".join(not_run.values())}'
        return claim

    def add_outputs(self, cases: Iterable[Case], sequences: Iterable[SequenceRow] = ()) -> None:
        for row in sequences:
            self.findings += sequence_findings(row)
            self.series[row.title] = row.series
        self.findings += case_findings(cases)

    def add_failures(self, reasons: Iterable[str], subject: str = '') -> None:
        self.findings += (Finding('outputs', subject, False, reason) for reason in reasons)

    def of(self, level: str) -> list[Finding]:
        """Return the findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    def with_figure(self, name: str) -> list[Finding]:
        return [finding for finding in self.findings if name in finding.figures]

    def summary(self) -> dict[str, Any]:
        inputs: dict[Any, bool] = {}
        for figures_of_case in (finding.figures for finding in self.with_figure('case')):
            key = figures_of_case.get('sample', figures_of_case['case'])
            inputs[key] = inputs.get(key, False) or figures_of_case['traced']
        images = [finding.figures for finding in self.with_figure('image')]
        frames = [finding.figures['frames'] for finding in self.with_figure('frames')]

        def figures(kind: str, name: str) -> list[float]:
            values = (finding.figures.get(name) for finding in self.with_figure(kind))
            return [value for value in values if value is not None]

        return dict(
            inputs=len(inputs),
            unseen_inputs=sum(not traced for traced in inputs.values()),
            sequence_frames=max(frames, default=0),
            checks=len(self.of('surroundings')),
            failed=len(self.failures),
            **{
                name: sum(entry[name] for entry in images)
                for name in ('reference', 'matched', 'missing', 'extra')
            },
            worst_rel=max(figures('tensor', 'max_rel'), default=None),
            worst_iou=min(figures('image', 'worst_iou'), default=None),
            worst_distance=max(figures('image', 'worst_distance'), default=None),
            worst_score=max(figures('image', 'worst_score'), default=None),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON: `verdict`, the title in small letters, `summary`, and attributes in JSON."""
        first = dict(verdict=self.title.lower(), summary=self.summary())
        attributes = dataclasses.asdict(dataclasses.replace(self, pairs=[]))
        del attributes['pairs'], attributes['claim']
        return plain_json(first | attributes)


def plain_json(value: Any) -> Any:
    """Return a nested value in JSON's types; NaN and infinity become None."""
    if isinstance(value, dict):
        return {str(key): plain_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, 'item'):
        return plain_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


UNSEEN = 'no input that the exporter did not see was compared'
"""The failure of a proof on traced inputs only."""


@dataclasses.dataclass
class Results:
    """Comparisons so far; `reasons`: failures beyond single rows."""

    graphs: list[GraphResult] = dataclasses.field(default_factory=list)
    checks: list[Check] = dataclasses.field(default_factory=list)
    preprocessing: PreprocessingResult | None = None
    cases: list[Case] = dataclasses.field(default_factory=list)
    sequence: list[SequenceRow] = dataclasses.field(default_factory=list)
    reasons: list[str] = dataclasses.field(default_factory=list)

    def add_to(self, verdict: Verdict) -> None:
        findings = verdict.findings
        findings += map(graph_finding, self.graphs)
        verdict.add_failures(self.reasons)
        findings += map(check_finding, self.checks)
        findings.append(preprocessing_finding(self.preprocessing))
        if self.preprocessing is not None:
            verdict.notes += [f'preprocessing: compared {gap}' for gap in self.preprocessing.gaps]
        verdict.add_outputs(self.cases, self.sequence)
        if all(case.traced for case in self.cases):
            verdict.add_failures([UNSEEN])


def graph_finding(graph: GraphResult) -> Finding:
    texts = [difference.text for difference in graph.differences]
    figures = dict(name=graph.name, nodes=graph.nodes, equal=graph.equal, left_out=graph.left_out)
    figures['differences'] = texts
    return Finding('file', 'graph', graph.passed, graph.text, figures)


def check_finding(check: Check) -> Finding:
    failed = '' if check.passed else 'failed'  # names say what should be
    return Finding('surroundings', check.name, check.passed, ', '.join(filter(None, (failed, check.detail))))


def preprocessing_finding(result: PreprocessingResult | None) -> Finding:
    if result is None:
        return Finding('surroundings', 'preprocessing', False, "not compared with the config's test pipeline")
    texts = [difference.text for difference in result.differences]
    figures = dict(samples=len(result.samples), unit=result.unit, differences=texts)
    return Finding('surroundings', 'preprocessing', result.passed, result.text, figures)


def library_findings(not_run: Mapping[str, str], is_against_installed: bool) -> list[Finding]:
    """Return a finding per repository library that did not run."""
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
    figures = _fields(row, 'mode', 'tensors', 'reasons', 'series')
    first, *more = row.reasons or ('',)
    yield Finding('outputs', row.title, row.passed, first, figures)
    for reason in more:
        yield Finding('outputs', row.title, False, reason)


def case_findings(cases: Iterable[Case]) -> Iterator[Finding]:
    for index, case in enumerate(cases):
        title = f'{case.name} {case.input_shape}'.strip()
        shape = case.input_shape
        common = dict(case=index, input=case.name, input_shape=shape, traced=case.traced)
        if case.sample:
            common['sample'] = case.sample
        for row in case.tensors:
            figures = common | _fields(row, 'passed', 'reason')
            yield Finding('outputs', f'{title}: {row.tensor}', row.passed, row.reason, figures)
        kinds = dict(image=case.detections, inner=case.inner, substituted=case.substituted)
        kinds['engine'] = case.engines
        for kind, row in ((kind, row) for kind, rows in kinds.items() for row in rows):
            figures = common | {kind: row.image} | _fields(row, 'image', 'passed', 'reason')
            if row.worst_distance is not None:
                del figures['worst_iou']
            suffix = ", by the file's own tensors" if kind == 'substituted' else ''
            yield Finding('outputs', f'{title}: {row.image}{suffix}', row.passed, row.reason, figures)
        if not case.tensors and not case.detections:
            yield Finding('outputs', title, True, 'all outputs are empty', common)


def metric_finding(row: MetricRow) -> Finding:
    figures = dict(reference=row.reference, candidate=row.candidate, bar=row.bar)
    return Finding('metrics', row.name, row.passed, row.difference_text, figures)


def _fields(row: Any, *left_out: str) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name not in left_out}
