"""The linter's findings by line: objects, table, JSON."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.bench.lint.rules import RULES, SEVERITIES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from mmdeploy_ext.bench.lint.observe import Event
    from mmdeploy_ext.bench.lint.sites import Site
    from mmdeploy_ext.bench.lint.trial_exports import TrialExport

COLOURS = dict(error='bold red', warning='yellow', note='dim')


@dataclasses.dataclass(frozen=True)
class Finding:
    """One pitfall at one line.

    Attributes:
        severity: 'note', 'warning' or 'error', for the chosen exporters.
        site: None if the finding concerns the module or an input as a whole.
        details: different texts of the events.
        count: events in the observed run.
    """

    rule: str
    severity: str
    site: Site | None
    details: tuple[str, ...]
    count: int

    def to_json(self) -> dict[str, Any]:
        rule, site, via = RULES[self.rule], self.site, None if self.site is None else self.site.via
        place = {name: getattr(site, name, None) for name in ('file', 'line', 'function', 'code', 'library')}
        return dict(
            rule=self.rule,
            severity=self.severity,
            title=rule.title,
            why=rule.why,
            fix=rule.fix,
            details=list(self.details),
            count=self.count,
            via=None if via is None else dict(file=via.file, line=via.line, code=via.code),
            outcomes=dict(rule.outcomes),
            **place,
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """Findings of one module: the most severe first, the user's lines before lines of libraries."""

    name: str
    findings: tuple[Finding, ...]
    trials: tuple[TrialExport, ...]
    exporters: tuple[str, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    @property
    def failed(self) -> bool:
        """Whether there is an error, or an exporter refused."""
        return any(finding.severity == 'error' for finding in self) or any(
            trial.refused for trial in self.trials
        )

    @property
    def rules(self) -> set[str]:
        """Ids of the findings' rules."""
        return {finding.rule for finding in self}

    def to_json(self) -> dict[str, Any]:
        """`name`, `exporters`, `failed`, `trials` and `findings` as plain JSON types."""
        return dict(
            name=self.name,
            exporters=list(self.exporters),
            failed=self.failed,
            trials=[trial.to_json() for trial in self.trials],
            findings=[finding.to_json() for finding in self],
        )


def make_report(
    name: str, events: Sequence[Event], exporters: Sequence[str], trials: Sequence[TrialExport]
) -> Report:
    """Report with one finding per rule and line."""
    groups: dict[tuple[str, str], list[Event]] = collections.defaultdict(list)
    for event in events:
        groups[event.rule, '' if event.site is None else event.site.text].append(event)
    findings = []
    for (rule, _), group in groups.items():
        details = tuple(dict.fromkeys(event.detail for event in group))
        severity = RULES[rule].severity(exporters)
        site = max(
            (event.site for event in group), key=lambda site: site is not None and site.via is not None
        )
        if site is None:  # one finding per input or attribute
            findings += [Finding(rule, severity, None, (detail,), 1) for detail in details]
        else:
            findings.append(Finding(rule, severity, site, details, len(group)))

    def order(finding: Finding) -> tuple[Any, ...]:
        severity, site = -SEVERITIES.index(finding.severity), finding.site
        if site is None:
            return severity, False, finding.rule
        return severity, True, site.library, site.file, site.line

    findings.sort(key=order)
    return Report(name, tuple(findings), tuple(trials), tuple(exporters))


MAX_DETAILS = 2
"""Printed details of a finding; the JSON has all."""


def print_report(report: Report, console: Console, notes: bool = False) -> None:
    """Print trials and findings; without `notes` notes are only counted."""
    from mmdeploy_ext.base.errors import escape

    console.print(f'[bold]{escape(report.name)}[/bold]')
    for trial in report.trials:
        mark = '[bold red]refused[/bold red]' if trial.refused else '[green]exports[/green]'
        mark = '[yellow]not tried[/yellow]' if trial.skipped else mark
        console.print(f'  {trial.exporter}, opset {trial.opset}: {mark} {escape(trial.text)}', soft_wrap=True)
    explained: set[str] = set()
    for finding in report:
        if finding.severity == 'note' and not notes:
            continue
        _print_finding(finding, console, finding.rule not in explained)
        explained.add(finding.rule)
    console.print(f'  {summary(report, notes)}')


def _print_finding(finding: Finding, console: Console, explain: bool) -> None:
    from mmdeploy_ext.base.errors import escape

    colour, site = COLOURS[finding.severity], finding.site
    place = '' if site is None else f' {escape(site.text)}'
    times = f' ({finding.count} times)' if finding.count > 1 else ''
    console.print(
        f'  [{colour}]{finding.severity}[/{colour}] [bold]{finding.rule}[/bold]{place}{times}', soft_wrap=True
    )
    if site is not None and site.code:
        console.print(f'      {escape(site.code)}', soft_wrap=True, highlight=False)
    if site is not None and site.via is not None:
        console.print(f'      from {escape(site.via.text)}: {escape(site.via.code)}', soft_wrap=True)
    details = '; '.join(finding.details[:MAX_DETAILS])
    if len(finding.details) > MAX_DETAILS:
        details += f'; and {len(finding.details) - MAX_DETAILS} more'
    console.print(f'      {escape(details)}', soft_wrap=True)
    if explain:
        rule = RULES[finding.rule]
        outcomes = ', '.join(f'{name}: {outcome}' for name, outcome in rule.outcomes.items())
        console.print(f'      why: {escape(rule.why)} ({escape(outcomes)})', soft_wrap=True)
        console.print(f'      fix: {escape(rule.fix)}', soft_wrap=True)


def summary(report: Report, notes: bool = True) -> str:
    """'2 errors, 1 note'."""
    counts = collections.Counter(finding.severity for finding in report)
    if not counts:
        return 'nothing found'
    text = ', '.join(
        f'{counts[name]} {name}{"s" if counts[name] > 1 else ""}'
        for name in reversed(SEVERITIES)
        if counts[name]
    )
    if counts['note'] and not notes:
        text += ' (--notes shows the notes)'
    return text
